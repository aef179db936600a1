"""What training changes: LoRA layers, whole networks, or any weights named by patterns; and how it is saved."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor, nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl

ADAPTER = "default"
DELTA = "pytorch_model.pt"
WHOLE = "transformer.safetensors"


class LoraSettings(BaseModel):
    """LoRA layers on a transformer (Hu et al. 2021, arXiv:2106.09685)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(128, ge=1, description="width of the layers")
    alpha: int = Field(64, ge=1, description="what they make is multiplied by alpha / rank")
    targets: tuple[str, ...] = Field(
        ("q", "k", "v", "o", "ffn.0", "ffn.2"), min_length=1, description="ends of the names of linear layers"
    )
    role: str = Field("dit", description="the network that gets them")


class WhatSettings(UnitSettings):
    """What is trained."""

    lora: LoraSettings | None = Field(None, description="LoRA layers to add; none: no LoRA")
    weights: tuple[str, ...] = Field(
        (), description="patterns of further weights, such as 'audio_adapter.*' or 'dit.patch_embedding.*'"
    )
    seed: int = Field(0, ge=0, description="of new layers")

    @property
    def roles(self) -> list[str]:
        """The roles of the networks that change."""
        named = [pattern.partition(".")[0] for pattern in self.weights]
        return list(dict.fromkeys([*([self.lora.role] if self.lora else []), *named]))


class Trained(PipelineUnit):
    """Adds what is to be trained to the networks, and takes everything else out of training.

    Trained weights are float32, whatever the rest of their network is.
    """

    name = "trained"
    fills_ranks = True

    class Settings(WhatSettings):
        pass

    settings: WhatSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.networks: dict[str, nn.Module] = {}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained weights, "role.name" each."""
        named = [(role, name, w) for role, net in self.networks.items() for name, w in net.named_parameters()]
        return {f"{role}.{plain(name)}": weight for role, name, weight in named if weight.requires_grad}

    def degrees(self, engine: Engine, ranks: int) -> dict[str, int]:
        """Every rank has samples of its own."""
        return {"samples": ranks}

    @hookimpl
    def setup(self, engine: Engine) -> None:
        settings = self.settings
        if settings.lora is not None:
            add_lora(engine.model(settings.lora.role), settings.lora, settings.seed)
        for role in settings.roles:
            if role not in engine.models:
                raise InputError(f"train.weights names the network '{role}', which no model file has")
            self.networks[role] = engine.model(role).requires_grad_(False)
        for role, network in self.networks.items():
            for name, weight in network.named_parameters():
                full = f"{role}.{plain(name)}"
                if ".lora_" in name or any(fnmatchcase(full, pattern) for pattern in settings.weights):
                    weight.data = weight.data.float()
                    weight.requires_grad_(True)
        chosen = self.parameters
        for pattern in settings.weights:
            if not any(fnmatchcase(name, pattern) for name in chosen):
                raise InputError(f"no weight fits the pattern '{pattern}' of train.weights{self._near(pattern)}")

    def save(self, folder: Path, weights: Mapping[str, Tensor], *, merged: bool, dtype: torch.dtype) -> None:
        """Write the result.

        With LoRA or single weights: `pytorch_model.pt` and `config.json`, in the form of the published OmniAvatar.
        merged, or where whole networks are trained: `transformer.safetensors`, all weights of the trained networks with
        LoRA merged into them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        networks = self.networks.items()
        trains_all = all(f"{role}.{name}" in weights for role, net in networks for name, _ in net.named_parameters())
        if not trains_all:
            delta = {name.partition(".")[2]: value.detach().cpu().to(dtype) for name, value in weights.items()}
            torch.save(delta, folder / DELTA)
            (folder / "config.json").write_text(json.dumps(self._description(), indent=1) + "\n", encoding="utf-8")
        if merged or trains_all:
            tensors = {name: value for role in self.networks for name, value in self._whole(role, weights).items()}
            save_file({name: value.to(dtype).contiguous() for name, value in tensors.items()}, folder / WHOLE)

    def _near(self, pattern: str) -> str:
        """A weight whose name is like a pattern."""
        known = [f"{role}.{plain(name)}" for role, net in self.networks.items() for name, _ in net.named_parameters()]
        close = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)
        return f"; there is '{close[0]}'" if close else ""

    def _description(self) -> dict[str, Any]:
        """`config.json`, in the words of the published one."""
        lora = self.settings.lora
        if lora is None:
            return {"train_architecture": "full"}
        return {"train_architecture": "lora", "lora_rank": lora.rank, "lora_alpha": lora.alpha}

    @torch.no_grad()
    def _whole(self, role: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weights of a network, in float32 on the CPU, with what was learnt in them."""
        whole: dict[str, Tensor] = {}
        for name, value in self.networks[role].state_dict().items():
            if ".lora_" not in name:
                whole[plain(name)] = weights.get(f"{role}.{plain(name)}", value).detach().float().cpu()
        lora = self.settings.lora
        for name, up in weights.items():
            if lora is not None and name.startswith(f"{role}.") and ".lora_B." in name:
                layer = name.removeprefix(f"{role}.").partition(".lora_B.")[0]
                down = weights[name.replace(".lora_B.", ".lora_A.")]
                change = (up.float().cpu() @ down.float().cpu()) * (lora.alpha / lora.rank)
                whole[f"{layer}.weight"] = whole[f"{layer}.weight"] + change
        return whole


def add_lora(network: nn.Module, settings: LoraSettings, seed: int) -> None:
    """Put LoRA layers beside linear layers of a network. Raises InputError without peft, or if no layer fits."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("LoRA training needs the package peft: pip install 'omniavatar[train]'") from None
    fitting = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and any(name == end or name.endswith(f".{end}") for end in settings.targets)
    ]
    if not fitting:
        raise InputError(f"no linear layer's name ends in one of the LoRA targets {', '.join(settings.targets)}")
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.targets))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)


def plain(name: str) -> str:
    """The name of a weight without the layers that LoRA has put around its own."""
    return name.replace(".base_layer.", ".")
