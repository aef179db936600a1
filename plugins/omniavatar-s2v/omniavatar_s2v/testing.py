"""Small numbers and files for tests: an S2V transformer beside the tiny networks of `omniavatar.testing`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omniavatar.sdk import WanDiT
from omniavatar.testing import tiny
from omniavatar_s2v.adapter import S2VAdapter

DIT: dict[str, Any] = {**tiny.DIT, "in_dim": 16, "out_dim": 16, "num_layers": 4}
ADAPTER: dict[str, Any] = {
    **{key: DIT[key] for key in ("dim", "in_dim", "num_heads", "eps", "patch_size")},
    "cond_dim": 16,
    "audio_dim": tiny.WAV2VEC["hidden_size"],
    "audio_layers": tiny.WAV2VEC["num_hidden_layers"] + 1,
    "num_audio_token": 4,
    "audio_inject_layers": (0, 2, 3),
}


def write_tiny(folder: Path, dit: WanDiT, adapter: S2VAdapter) -> Path:
    """Write both networks as one file, as published, with the config.json that belongs beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "diffusion_pytorch_model.safetensors"
    tiny.save(file, {**tiny.weights(dit), **tiny.weights(adapter)})
    settings = {"num_heads": ADAPTER["num_heads"], "audio_inject_layers": ADAPTER["audio_inject_layers"]}
    (folder / "config.json").write_text(json.dumps(settings) + "\n")
    return file
