"""Networks handed to the engine directly, without files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omniavatar.checkpoints.lora import Lora, read_lora
from omniavatar.checkpoints.lora_names import MAIN, parts_in, places
from omniavatar.engine.geometry import Geometry

WAN = Geometry(channels=16, temporal_factor=4, spatial_factor=8, patch_size=(1, 2, 2))
"""What latents and tokens of the Wan 2.1 models stand for."""


class GivenModels:
    """An `omniavatar.engine.engine.Models` over networks that exist already."""

    def __init__(self, **networks: nn.Module) -> None:
        self.networks = networks

    def __contains__(self, role: object) -> bool:
        return role in self.networks

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        """The network, moved and cast."""
        return self.networks[role].to(device, dtype)

    def config(self, role: str) -> Mapping[str, Any]:
        """The attributes of the network."""
        return vars(self.networks[role])

    def identity(self, role: str) -> str:
        """A fingerprint of the weights."""
        content = hashlib.blake2b(digest_size=16)
        for name, weight in self.networks[role].state_dict().items():
            content.update(name.encode() + weight.detach().double().cpu().numpy().tobytes())
        return content.hexdigest()

    def beside(self, role: str, path: Path) -> Path:
        """The path as it is."""
        return path

    def tokenizer(self, role: str) -> None:
        """None lies in a file."""

    def adapters(self) -> Sequence[Any]:
        """No LoRA files."""
        return ()


@dataclass(frozen=True)
class GivenLora:
    """A LoRA in memory, an `omniavatar.engine.engine.Adapter`: tensors under the names that a file would have.

    alpha: that of adapter_config.json, for layers that have none of their own.
    """

    state: Mapping[str, Tensor]
    name: str = "lora.safetensors"
    target: str = "dit"
    strength: float | tuple[tuple[float, float, float], ...] = 1.0
    alpha: float | None = None
    is_own: bool = False
    is_named: bool = False
    branches: tuple[str, ...] = ()

    def places(self, experts: Sequence[str]) -> dict[str, str]:
        """See `lora_names.places`."""
        found = places(parts_in(self.state), self.target, experts, is_named=self.is_named)
        return {**found, **dict.fromkeys(self.branches, found.get(self.target, MAIN))}

    def read(self) -> Lora:
        """What the tensors mean."""
        settings = {} if self.alpha is None else {"lora_alpha": self.alpha}
        return read_lora(self.state, settings=settings, name=self.name)


class LatentFormat(nn.Module):
    """What the engine asks of a VAE before it makes noise, for plans that neither encode nor decode."""

    spatial_factor = 8
    temporal_factor = 4
    z_dim = 16
