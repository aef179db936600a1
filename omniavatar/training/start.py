"""What training starts from: networks of the model files, changed where asked, or new ones with random weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import nn

from omniavatar.checkpoints.hashing import content_sample
from omniavatar.checkpoints.loading import accepted, import_network
from omniavatar.engine.delegation import DelegatingModels
from omniavatar.engine.engine import Models
from omniavatar.errors import InputError
from omniavatar.media.paths import input_file


class StartSettings(BaseModel):
    """How one network starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str | None = Field(None, description="module:Class of a new network; none: that of the model files")
    config: dict[str, Any] = Field(default_factory=dict, description="its numbers, or those that change")
    weights: Path | None = Field(None, description="safetensors file with weights of it, under its own names")


class KnownModels(Models, Protocol):
    """Models that can be told from others."""

    def identity(self, role: str) -> str:
        """A fingerprint of this role's weights."""
        ...


class Starting(DelegatingModels[KnownModels]):
    """Models of which some are new or changed; see `omniavatar.engine.engine.Models`."""

    def __init__(self, models: KnownModels, changes: Mapping[str, StartSettings], seed: int) -> None:
        self.models, self.changes, self.seed = models, changes, seed
        for role, change in changes.items():
            if change.network is None and role not in models:
                raise InputError(f"start.{role} names no network, and no model file has one; give start.{role}.network")

    def __contains__(self, role: object) -> bool:
        return role in self.changes or role in self.models

    def __getattr__(self, name: str) -> Any:
        """What else may be asked of the models, such as the skeletons of networks that are as in their files."""
        if name.startswith("_") or "models" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.models, name)

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        change = self.changes.get(role)
        if change is None:
            return self.models.load(role, device=device, dtype=dtype, **constructor)
        if change.network is None:
            network = self.models.load(role, device=device, dtype=dtype, overrides=change.config, **constructor)
        else:
            network = self._new(role, change, constructor).to(device, dtype)
        if change.weights is not None:
            fill(network, change.weights)
        return network

    def _new(self, role: str, change: StartSettings, offered: Mapping[str, Any]) -> nn.Module:
        """A network with random weights, the same ones in every run."""
        kind = import_network(str(change.network))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            try:
                network: nn.Module = kind(**change.config, **accepted(str(change.network), offered))
            except (TypeError, ValueError) as error:
                raise InputError(f"start.{role}.config: {error}") from None
            initialise(network)
        return network

    def config(self, role: str) -> Mapping[str, Any]:
        change = self.changes.get(role, StartSettings())
        return {**({} if change.network else self.models.config(role)), **change.config}

    def identity(self, role: str) -> str:
        """A fingerprint of this role's weights at the start."""
        change = self.changes.get(role)
        if change is None:
            return self.models.identity(role)
        content = hashlib.blake2b(digest_size=16)
        content.update((str(self.seed) if change.network else self.models.identity(role)).encode())
        content.update(json.dumps([change.network, change.config], sort_keys=True).encode())
        if change.weights is not None:
            content.update(content_sample(input_file(change.weights, "weights")))
        return content.hexdigest()


def initialise(network: nn.Module) -> None:
    """Glorot's uniform weights (Glorot and Bengio 2010) for linear layers; what enters or leaves the network is quiet.

    A transformer's head and an audio adapter's projections begin at zero: the first steps do not shake the rest.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, weight in network.named_parameters():
        if name.startswith(("head.head.", "audio_cond_projs.")):
            nn.init.zeros_(weight)


def fill(network: nn.Module, file: Path) -> None:
    """Put the tensors of a file that the network knows into it. Raises InputError if some are missing."""
    found = load_file(input_file(file, "weights"))
    missing = [name for name in network.state_dict() if name not in found]
    if missing:
        raise InputError(f"{file} lacks {len(missing)} tensors of {type(network).__name__}, such as '{missing[0]}'")
    network.load_state_dict({name: found[name] for name in network.state_dict()})
