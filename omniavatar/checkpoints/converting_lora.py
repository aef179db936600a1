"""LoRA files under the names of other programs: every tensor as it is, and the strengths of its layers kept.

ComfyUI: `diffusion_model.<layer>.lora_up.weight` with `.alpha`. omniavatar: `<layer>.lora_B.default.weight` with
`.alpha`. diffusers: `transformer.<its layer>.lora_B.weight`, with ranks and alphas in the header's entry
`lora_adapter_metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar.checkpoints.bundle import Bundle
from omniavatar.checkpoints.formats import Format, TensorInfo
from omniavatar.checkpoints.lora_names import DIFFUSERS, MAIN, OF_OTHER_ENCODERS, Layers, meaning
from omniavatar.checkpoints.names import undo
from omniavatar.checkpoints.registry import LORA, Detection, Registry
from omniavatar.errors import CheckpointError, few

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from omniavatar.checkpoints.lora import Layer

PREFIXES = {"comfy": "diffusion_model.", "omniavatar": "", "diffusers": "transformer."}
PAIRS = {
    "comfy": {"down": ".lora_down.weight", "up": ".lora_up.weight"},
    "omniavatar": {"down": ".lora_A.default.weight", "up": ".lora_B.default.weight"},
    "diffusers": {"down": ".lora_A.weight", "up": ".lora_B.weight", "up_bias": ".lora_B.bias"},
}
"""Endings by form."""
OTHERS = {
    "up_bias": ".lora_B.bias",
    "alpha": ".alpha",
    "dora_scale": ".dora_scale",
    "magnitude": ".lora_magnitude_vector.weight",
    "reshape": ".reshape_weight",
    "diff": ".diff",
    "diff_b": ".diff_b",
    "diff_m": ".diff_m",
    "set": ".set_weight",
}
"""Endings of what diffusers has no names for; those that are not here are what they are called: `.hada_w1_a`."""
METADATA = "lora_adapter_metadata"


def renamed_lora(found: Detection, form: str, registry: Registry) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a LoRA file by their names in a form, and entries for the header of the new file.

    Raises CheckpointError for what has no name there, and for layers that no known network has.
    """
    if form not in PREFIXES:
        raise CheckpointError(
            f"{found.files[0]} is a LoRA; it can be written as {', '.join(PREFIXES)}, not as '{form}'"
        )
    (adapter,) = Bundle([found]).adapters()
    lora = adapter.read(values=False)
    if lora.others:
        raise CheckpointError(f"LoRA {lora.name}: {few(lora.others)} cannot be written, as no known kind of change")
    tensors = next(component.tensors for component in found.components if component.role == LORA)
    known = known_layers(registry)
    named: dict[str, TensorInfo] = {}
    alphas: dict[str, tuple[int, float]] = {}
    for layer in lora.layers:
        found_in = meaning(layer.stem)
        if found_in.part != MAIN:
            raise CheckpointError(
                f"LoRA {lora.name}: '{layer.stem}' is for the {found_in.part}, and a file for several networks has no "
                "one name in other forms; split it first"
            )
        name = known.find(layer.stem)
        if name is None and found_in.names and not layer.stem.startswith(OF_OTHER_ENCODERS):
            name = found_in.official  # as in the network that it is for, which is not here
        if name is None:
            raise CheckpointError(
                f"LoRA {lora.name}: no known network has the layer '{layer.stem}', so it has no name in other forms"
            )
        if form == "diffusers":
            alphas |= alpha_of(layer, undo(name, DIFFUSERS), lora.name, tensors)
        for part, key in layer.keys.items():
            if part == "alpha" and form == "diffusers":
                continue
            put(named, new_name(name, part, form, lora.name), tensors[key], lora.name)
        if form != "diffusers" and "alpha" not in layer.keys and layer.scale != 1:
            alpha = f"{PREFIXES[form]}{name}.alpha"
            put(named, alpha, number(alpha, layer.scale * rank_of(layer)), lora.name)
    metadata = {METADATA: json.dumps(adapter_metadata(alphas))} if form == "diffusers" else {}
    return named, metadata


def new_name(layer: str, part: str, form: str, file: str) -> str:
    """The name of a tensor. Raises CheckpointError if the form has none for it."""
    ending = PAIRS[form].get(part)
    if form == "diffusers":
        if ending is None:
            what = OTHERS.get(part, f".{part}")
            raise CheckpointError(f"LoRA {file}: diffusers has no name for '{layer}{what}'; write the form 'comfy'")
        layer = undo(layer, DIFFUSERS)
    return PREFIXES[form] + layer + (ending or OTHERS.get(part, f".{part}"))


def put(named: dict[str, TensorInfo], name: str, info: TensorInfo, file: str) -> None:
    """Add a tensor; two names of one layer are an error."""
    if name in named:
        raise CheckpointError(f"LoRA {file}: '{named[name].name}' and '{info.name}' both mean '{name}'; remove one")
    named[name] = info


def rank_of(layer: Layer) -> int:
    """The rank of a layer that has a scale."""
    from omniavatar.checkpoints import lora

    rank = lora.rank_of(layer)
    return 1 if rank is None else rank


def alpha_of(
    layer: Layer, name: str, file: str, tensors: Mapping[str, TensorInfo]
) -> Iterator[tuple[str, tuple[int, float]]]:
    """Rank and alpha of a layer, by its name in diffusers."""
    from omniavatar.checkpoints.loading import read_tensors

    if "down" not in layer.tensors:
        return
    rank, alpha = rank_of(layer), layer.scale * rank_of(layer)
    if "alpha" in layer.keys:
        ((_, tensor),) = read_tensors({"": tensors[layer.keys["alpha"]]}, device="cpu", dtype=None)
        alpha = float(tensor.float())
    yield name, (rank, alpha)


def adapter_metadata(alphas: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """What diffusers writes of an adapter: the commonest rank and alpha, and the layers that have others."""
    values = list(alphas.values())
    rank, alpha = max(dict.fromkeys(values), key=values.count) if values else (1, 1.0)
    entries = {
        "r": rank,
        "lora_alpha": whole(alpha),
        "rank_pattern": {f"^{name}": other for name, (other, _) in alphas.items() if other != rank},
        "alpha_pattern": {f"^{name}": whole(other) for name, (_, other) in alphas.items() if other != alpha},
        "target_modules": sorted(alphas),
        "lora_bias": False,
        "use_dora": False,
        "use_rslora": False,
        "peft_type": "LORA",
    }
    return {f"transformer.{key}": value for key, value in entries.items()}


def whole(value: float) -> float | int:
    """A whole number as such."""
    return int(value) if value == int(value) else value


@lru_cache(maxsize=4)
def known_layers(registry: Registry) -> Layers:
    """The layers of all transformers that are known, those of the deepest network of each class."""
    from omniavatar.checkpoints.loading import build_on_meta

    deepest: dict[str, Mapping[str, Any]] = {}
    for row in registry.rows:
        for spec in row.components.values() if row.hash else ():
            depth = spec.config.get("num_layers")
            path = str(spec.network)
            if isinstance(depth, int) and depth > deepest.get(path, {}).get("num_layers", 0):
                deepest[path] = spec.config
    names: list[str] = []
    for path, config in deepest.items():
        try:
            names += build_on_meta(path, config).state_dict()
        except CheckpointError:  # its package is broken, which is no fault of this file
            continue
    return Layers(names)


def number(name: str, value: float) -> TensorInfo:
    """A number that is written as a tensor of this name, and lies in no file."""
    return TensorInfo(name, (), "float32", Path(name), format=Number(value))


class Number(Format):
    """Stands for a file that holds one number."""

    name = "number"
    suffixes = (".number",)

    def __init__(self, value: float) -> None:
        self.value = value

    def read(self, file: Path, names: Iterable[str], device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
        """See `Format.read`: the number, whatever it is asked for."""
        import torch

        for name in names:
            yield name, torch.tensor(self.value, device=device)
