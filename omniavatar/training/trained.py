"""What training changes: LoRA layers, whole networks, or any weights named by patterns; and how it is saved."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from omniavatar.checkpoints.registry import TRANSFORMER
from omniavatar.engine.conversion import TrainsWeights
from omniavatar.engine.engine import Engine
from omniavatar.engine.ranks import SpreadsWork
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.errors import InputError, OutputError, nearest
from omniavatar.hookspecs import hookimpl
from omniavatar.media.paths import shown
from omniavatar.training import sharded
from omniavatar.training.start import StartSettings

log = logging.getLogger(__name__)

ADAPTER = "default"
AUDIO_LAYERS = "audio_adapter"
DELTA = "pytorch_model.pt"
WHOLE = "transformer.safetensors"
EXPORT = Path("comfyui") / "lora.safetensors"
"""The LoRA for other programs, in a folder of its own: whoever opens the result's folder has it once."""


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

    @property
    def transformer(self) -> str:
        """The role of the transformer that changes, or works with what does."""
        return next((role for role in self.roles if role.startswith(TRANSFORMER)), TRANSFORMER)


class Trained(PipelineUnit, SpreadsWork, TrainsWeights):
    """Adds what is to be trained to the networks, and takes everything else out of training.

    Trained weights are float32, whatever the rest of their network is.
    """

    name = "trained"
    fills_ranks = True

    class Settings(WhatSettings):
        pass

    settings: WhatSettings

    engine: Engine

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
        settings, self.engine = self.settings, engine
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
        self._check_names()
        chosen = self.parameters
        for pattern in settings.weights:
            if not any(fnmatchcase(name, pattern) for name in chosen):
                raise InputError(f"no weight fits the pattern '{pattern}' of train.weights{self._near(pattern)}")

    def save(
        self,
        folder: Path,
        weights: Mapping[str, Tensor],
        *,
        merged: bool,
        dtype: torch.dtype,
        start: Mapping[str, StartSettings] = MappingProxyType({}),
    ) -> None:
        """Write the result, on the first rank; all call it. `start` says which networks are not those of the files.

        `pytorch_model.pt`: what changes the model files, in the form of the published OmniAvatar.
        merged, or where that form does not do, such as for a transformer trained whole: `transformer.safetensors`, all
        weights of the transformer, of the audio layers and of what else is trained, with LoRA merged into them.
        `comfyui/lora.safetensors`: the LoRA under the names of ComfyUI and most other programs, with the scale in it.
        `config.json`: what the tensors do not say. Raises OutputError if something cannot be written.
        """
        is_whole = self._needs_whole(weights, start)
        delta = {} if is_whole else self._delta(weights, dtype, start)
        whole = self._whole(weights, dtype) if merged or is_whole else {}
        if not self.engine.world.is_main:
            return
        description = json.dumps(self._description(is_whole=bool(whole)), indent=1) + "\n"
        write(folder / "config.json", lambda path: path.write_text(description, encoding="utf-8"))
        if delta:
            write(folder / DELTA, lambda path: torch.save(delta, path))
        export = self._export(delta)
        if export:
            write(folder / EXPORT, lambda path: save_file(export, path))
            alone = sorted({name.partition(".")[0] for name in delta if ".lora_" not in name})
            if alone:
                log.info(
                    "%s has the LoRA layers alone; what else was trained is in %s: %s",
                    *(EXPORT, DELTA, ", ".join(alone)),
                )
        if whole:
            write(folder / WHOLE, lambda path: save_file(whole, path))

    def _check_names(self) -> None:
        """Refuse networks whose weights would have the same names in the result."""
        owners: dict[str, str] = {}
        for role, network in self.networks.items():
            for name, _ in network.named_parameters():
                other = owners.setdefault(plain(name), role)
                if other != role:
                    raise InputError(
                        f"train names the networks '{other}' and '{role}', whose weights have the same names in the "
                        "result; train one of them, then the other"
                    )

    def _near(self, pattern: str) -> str:
        """A weight whose name is like a pattern."""
        known = [f"{role}.{plain(name)}" for role, net in self.networks.items() for name, _ in net.named_parameters()]
        close = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)
        return f"; there is '{close[0]}'" if close else ""

    def _description(self, *, is_whole: bool) -> dict[str, Any]:
        """`config.json`, in the words of the published one."""
        lora = self.settings.lora
        if lora is None:
            description: dict[str, Any] = {"train_architecture": "full"}
        else:
            description = {"train_architecture": "lora", "lora_rank": lora.rank, "lora_alpha": lora.alpha}
        if is_whole and self.settings.transformer in self.engine.models:
            config = self.engine.models.config(self.settings.transformer)
            description |= {"num_heads": config["num_heads"]} if "num_heads" in config else {}
        return description

    def _needs_whole(self, weights: Mapping[str, Tensor], start: Mapping[str, StartSettings]) -> bool:
        """Whether the transformer is another one than the files', or has what their LoRA would be added to again."""
        role = self.settings.transformer
        if role not in self.engine.models:
            return False
        if role in start and (start[role].network or start[role].weights):
            return True
        names = [name for name, _ in self.engine.model(role).named_parameters() if ".lora_" not in name]
        if all(f"{role}.{plain(name)}" in weights for name in names):
            return True
        shapes = {name: tuple(weight.shape) for name, weight in self.engine.model(role).named_parameters()}
        plain_shapes = {plain(name): shape for name, shape in shapes.items() if ".lora_" not in name}
        adapters = [(one, one.places(self.engine.plan.experts)) for one in self.engine.models.adapters()]
        changed = (
            name
            for adapter, places in adapters
            if role in places
            for name in adapter.read().fit(plain_shapes, partial=True, part=places[role]).changes
        )
        return any(f"{role}.{name}" in weights for name in changed)

    def _delta(
        self, weights: Mapping[str, Tensor], dtype: torch.dtype, start: Mapping[str, StartSettings]
    ) -> dict[str, Tensor]:
        """What was trained, and what has to lie in the file with it: all of the audio layers, the patch embedding."""
        role = self.settings.transformer
        owned = {name: name.partition(".")[0] for name in weights}
        changed = {*start, *(owner for name, owner in owned.items() if owner != role or ".lora_" not in name)}
        values = {name: value for name, value in weights.items() if owned[name] != AUDIO_LAYERS}
        if role in changed and role in self.engine.models:
            for name, value in self.engine.model(role).state_dict().items():
                if name.startswith("patch_embedding."):
                    values.setdefault(f"{role}.{plain(name)}", value)
        delta = {name.partition(".")[2]: gather(value).cpu().to(dtype) for name, value in values.items()}
        if AUDIO_LAYERS in changed and AUDIO_LAYERS in self.engine.models:
            delta |= self._network(AUDIO_LAYERS, weights, dtype)
        return delta

    def _export(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The LoRA of a delta as other programs read it: `diffusion_model.LAYER.lora_{A,B}.weight` and `.alpha`."""
        if self.settings.lora is None:
            return {}
        export: dict[str, Tensor] = {}
        for name, value in delta.items():
            layer, found, side = name.removesuffix(f".{ADAPTER}.weight").rpartition(".lora_")
            if found and name.endswith(f".{ADAPTER}.weight"):
                export[f"diffusion_model.{layer}.lora_{side}.weight"] = value.contiguous()
                export[f"diffusion_model.{layer}.alpha"] = torch.tensor(float(self.settings.lora.alpha))
        return export

    def _whole(self, weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The transformer, its audio layers, and what else is trained."""
        roles = dict.fromkeys((self.settings.transformer, *self.networks, AUDIO_LAYERS))
        networks = [self._network(role, weights, dtype) for role in roles if role in self.engine.models]
        return {name: value for network in networks for name, value in network.items()}

    def _network(self, role: str, weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """All weights of a network on the CPU, with what was learnt in them; nothing but on the first rank."""
        network: dict[str, Tensor] = {}
        for name, value in self.engine.model(role).state_dict().items():
            if ".lora_" in name:
                continue
            learnt = gather(weights.get(f"{role}.{plain(name)}", value))
            if self.engine.world.is_main:
                changed = learnt.float().cpu() + self._change(role, plain(name), weights)
                network[plain(name)] = changed.to(dtype).contiguous()
        return network

    def _change(self, role: str, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """What LoRA adds to a weight, float32 on the CPU."""
        layer = f"{role}.{name.removesuffix('.weight')}"
        down, up = (weights.get(f"{layer}.lora_{side}.{ADAPTER}.weight") for side in "AB")
        if self.settings.lora is None or not name.endswith(".weight") or down is None or up is None:
            return torch.zeros(())
        return (up.float().cpu() @ down.float().cpu()) * (self.settings.lora.alpha / self.settings.lora.rank)


def gather(value: Tensor) -> Tensor:
    """All of a weight that may be sharded, without its history. All ranks call this together."""
    return sharded.whole(value.detach())


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """Write a file that is replaced at once or not at all. Raises OutputError."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch has errors of its own for a full disk
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise OutputError(
            f"cannot write {shown(path)}: {reason}; the training is kept, and the same command tries again"
        ) from None


def add_lora(network: nn.Module, settings: LoraSettings, seed: int) -> None:
    """Put LoRA layers beside linear layers of a network. Raises InputError without peft, or if no layer fits."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError:
        raise InputError("LoRA training needs the package peft: pip install 'omniavatar[train]'") from None
    layers = [name.split(".") for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    ends = {".".join(parts[-count:]) for parts in layers for count in range(1, len(parts) + 1)}
    for target in settings.targets:
        if target not in ends:
            raise InputError(f"no linear layer's name ends in the LoRA target '{target}'{nearest(target, short(ends))}")
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.targets))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    for layer in network.modules():
        if isinstance(layer, LoraLayer):  # autocast fits inputs and weights; peft would copy every input to float32
            layer.cast_input_dtype_enabled = False


def short(ends: set[str]) -> list[str]:
    """The ends of names that hold for layers of every block."""
    return [end for end in ends if end.count(".") < 2]


def plain(name: str) -> str:
    """The name of a weight without the layers that LoRA has put around its own."""
    return name.replace(".base_layer.", ".")
