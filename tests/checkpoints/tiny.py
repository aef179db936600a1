"""Tiny networks and checkpoint files in the layouts of the published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from omniavatar.checkpoints import Registry, fingerprint
from omniavatar.models.audio_adapter import AudioAdapter
from omniavatar.models.wan_dit import WanDiT
from omniavatar.resources import registry_tables

DIT: dict[str, Any] = {
    "dim": 24,
    "in_dim": 16,
    "ffn_dim": 32,
    "out_dim": 16,
    "text_dim": 20,
    "freq_dim": 8,
    "eps": 1e-6,
    "patch_size": [1, 2, 2],
    "num_heads": 2,
    "num_layers": 6,
}
ADAPTER: dict[str, Any] = {"audio_in_dim": 7, "audio_hidden_size": 5, "dim": 24, "num_layers": 6, "audio_norm": 1}
State = dict[str, Tensor]


def dit_state(seed: int = 0, **changes: Any) -> State:
    torch.manual_seed(seed)
    return dict(WanDiT(**{**DIT, **changes}).state_dict())


def adapter_state() -> State:
    torch.manual_seed(1)
    return dict(AudioAdapter(**ADAPTER).state_dict())


def delta_state(rank: int = 4) -> State:
    """An OmniAvatar delta for the tiny transformer: LoRA on two layers, patch embedding, audio layers."""
    torch.manual_seed(2)
    state = {
        f"patch_embedding.{name}": dit_state(3, in_dim=33)[f"patch_embedding.{name}"] for name in ("weight", "bias")
    }
    for layer, size in (("self_attn.q", 24), ("ffn.2", 32)):
        state[f"blocks.0.{layer}.lora_A.default.weight"] = torch.randn(rank, size)
        state[f"blocks.0.{layer}.lora_B.default.weight"] = torch.randn(24, rank)
    return state | adapter_state()


def write_safetensors(path: Path, state: State) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def write_base(folder: Path, state: State | None = None) -> Path:
    return write_safetensors(folder / "base.safetensors", state or dit_state())


def write_delta(folder: Path, settings: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(delta_state(), folder / "pytorch_model.pt")
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder / "pytorch_model.pt"


def write_table(path: Path, state: State | None = None, **row: Any) -> Path:
    """A table with one row for the tiny transformer; `row` changes its fields."""
    return write_row(path, {name: tuple(tensor.shape) for name, tensor in (state or dit_state()).items()}, DIT, **row)


def write_row(path: Path, shapes: dict[str, tuple[int, ...]], config: dict[str, Any], **row: Any) -> Path:
    """A table with one row for a transformer of these shapes and numbers."""
    fields = {"name": "tiny", "hash": fingerprint(shapes), **row}
    component = {"network": "omniavatar.models.wan_dit:WanDiT", "growable": ["patch_embedding.weight"]}
    lines = ["[[checkpoint]]", *_toml(fields), "[checkpoint.components.dit]", *_toml(component)]
    path.write_text("\n".join([*lines, "[checkpoint.components.dit.config]", *_toml(config)]) + "\n")
    return path


def _toml(fields: dict[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in fields.items()]


def tiny_registry(folder: Path, state: State | None = None) -> Registry:
    """The built-in tables and a row for the tiny transformer."""
    return Registry([*registry_tables(), write_table(folder / "tiny.toml", state)])
