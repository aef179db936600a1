"""Small numbers, networks and files for tests: an Animate transformer beside the networks of other packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.testing import IMAGE_DIT, tiny_image_models
from torch import nn

from omniavatar.testing import tiny
from omniavatar_animate.adapter import AnimateAdapter

ADAPTER: dict[str, Any] = {
    "dim": IMAGE_DIT["dim"],
    "patch_size": IMAGE_DIT["patch_size"],
    "pose_in_dim": 16,
    "motion_channels": (4, 8, 8),
    "motion_style_dim": 16,
    "motion_dim": 5,
    "face_encoder_width": 16,
    "face_tokens": 4,
    "face_heads": IMAGE_DIT["num_heads"],
    "face_layers": 2,
    "face_every": 5,
}


def random_adapter(**changes: Any) -> AnimateAdapter:
    """The tiny layers beside the transformer, with random weights and no default in place."""
    torch.manual_seed(tiny.SEED)
    adapter = AnimateAdapter(**{**ADAPTER, **changes}).eval().requires_grad_(False)
    for parameter in adapter.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return adapter


def tiny_animate_models(**networks: nn.Module) -> tiny.TinyModels:
    """All networks of a tiny Animate model with random weights; some may be given instead, or more."""
    return tiny_image_models(**{"animate_adapter": random_adapter(), **networks})


def write_tiny(folder: Path, dit: ImageDiT, adapter: AnimateAdapter) -> Path:
    """Write both networks as one file, as published, with a config.json beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "diffusion_pytorch_model.safetensors"
    tiny.save(file, {**tiny.weights(dit), **tiny.weights(adapter)})
    (folder / "config.json").write_text(json.dumps({"motion_channels": ADAPTER["motion_channels"]}) + "\n")
    return file
