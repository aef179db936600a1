"""Tiny image-to-video networks for tests, beside those of `omniavatar.testing.tiny`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from omniavatar.testing.tiny import DIT, SEED, TinyModels
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageDiT

CLIP: dict[str, Any] = {
    "tokens": 5,
    "patch_size": 14,
    "dim": 80,
    "out_dim": 16,
    "mlp_ratio": 2,
    "num_heads": 1,
    "num_layers": 2,
}
IMAGE_DIT: dict[str, Any] = {**DIT, "in_dim": 36, "clip_dim": CLIP["dim"]}
FLF2V_DIT: dict[str, Any] = {**IMAGE_DIT, "image_positions": 2 * CLIP["tokens"]}


def tiny_image_models(**networks: nn.Module) -> TinyModels:
    """All networks of a tiny image-to-video model with random weights; some may be given instead, or more."""
    torch.manual_seed(SEED)
    made: dict[str, Any] = {"dit": ImageDiT(**IMAGE_DIT), "image_encoder": ClipImageEncoder(**CLIP), **networks}
    return TinyModels(**made)
