"""Networks handed to the engine directly, without files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn


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

    def adapters(self) -> Sequence[Any]:
        """No LoRA files."""
        return ()


class LatentFormat(nn.Module):
    """What the engine asks of a VAE before it makes noise, for plans that neither encode nor decode."""

    spatial_factor = 8
    z_dim = 16
