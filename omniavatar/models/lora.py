"""LoRA (Hu et al. 2021, arXiv:2106.09685): W + scale B A, read under any usual names and merged into a network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omniavatar.models.packed import PackedLayer

PAIR = re.compile(r"^(?:diffusion_model\.)?(?P<module>.+)\.lora_(?P<part>A|B|down|up)(?:\.(?!weight$)[^.]+)?\.weight$")
DOWN = ("A", "down")


@dataclass(frozen=True)
class LoraPair:
    """What one layer learnt: weight += scale * up @ down, with down (rank in) and up (out rank)."""

    module: str
    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The weight (float32) with the pair added."""
        up, down = (half.to(weight.device, torch.float32).flatten(1) for half in (self.up, self.down))
        return weight + ((up @ down) * (self.scale * strength)).view_as(weight)


def lora_pairs(state: Mapping[str, Tensor], alpha: float | None = None) -> list[LoraPair]:
    """The pairs of a LoRA file, sorted by layer.

    The scale of a pair is alpha / rank, with alpha from the tensor `<module>.alpha` beside it, else from `alpha`, else
    rank. Keys: `lora_A`/`lora_B` or `lora_down`/`lora_up`, with or without an adapter's name before `.weight`, with or
    without `diffusion_model.` in front. Raises ValueError for half a pair.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in state.items():
        match = PAIR.match(key)
        if match is not None:
            side = "down" if match["part"] in DOWN else "up"
            halves.setdefault(match["module"], {})[side] = tensor
        elif key.endswith(".alpha"):
            alphas[key.removesuffix(".alpha").removeprefix("diffusion_model.")] = float(tensor)
    pairs = []
    for module, half in sorted(halves.items()):
        if len(half) != 2:
            raise ValueError(f"the layer '{module}' has only one half of its LoRA pair")
        rank = half["down"].shape[0]
        pairs.append(LoraPair(module, half["down"], half["up"], alphas.get(module, alpha or rank) / rank))
    return pairs


def unknown_modules(network: nn.Module, pairs: Iterable[LoraPair]) -> list[str]:
    """The layers of the pairs that the network does not have."""
    modules = dict(network.named_modules())
    return [pair.module for pair in pairs if shape_of(modules.get(pair.module)) is None]


def shape_of(layer: nn.Module | None) -> tuple[int, ...] | None:
    """The shape of a layer's weight, packed or not."""
    if isinstance(layer, PackedLayer):
        return layer.out_features, layer.in_features
    weight = getattr(layer, "weight", None)
    return tuple(weight.shape) if isinstance(weight, Tensor) else None


def check_pairs(network: nn.Module, pairs: Sequence[LoraPair]) -> None:
    """Raise ValueError if a pair does not fit its layer, or there is none. 1x1 convolutions count as linear layers."""
    unknown = unknown_modules(network, pairs)
    if unknown:
        raise ValueError(
            f"{len(unknown)} of its {len(pairs)} layers are not in the transformer, such as '{unknown[0]}'"
        )
    modules = dict(network.named_modules())
    for pair in pairs:
        made, shape = (pair.up.shape[0], pair.down.shape[1]), shape_of(modules[pair.module])
        assert shape is not None
        if pair.down.shape[0] != pair.up.shape[1] or shape[:2] != made or math.prod(shape) != math.prod(made):
            raise ValueError(f"the LoRA of '{pair.module}' makes {made}, the layer has {shape}")
