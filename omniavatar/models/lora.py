"""LoRA (Hu et al. 2021, arXiv:2106.09685): W + scale B A, read under any usual names and merged into a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    return [pair.module for pair in pairs if not hasattr(modules.get(pair.module), "weight")]


@torch.no_grad()
def merge_lora(
    network: nn.Module, pairs: Iterable[LoraPair], scale: float = 1.0, device: torch.device | str | None = None
) -> None:
    """Add the pairs to the weights, computed in float32. 1x1 convolutions count as linear layers.

    Weights on the meta device, which are read when they are used, are left as they are.
    device: where to compute, if not where the weights are.
    Raises ValueError, with nothing changed, if a pair does not fit its layer.
    """
    pairs = list(pairs)
    weights = [network.get_parameter(f"{pair.module}.weight") for pair in pairs]
    for pair, weight in zip(pairs, weights, strict=True):
        shape = (pair.up.shape[0], pair.down.shape[1])
        if (
            pair.down.shape[0] != pair.up.shape[1]
            or tuple(weight.shape[:2]) != shape
            or weight.numel() != shape[0] * shape[1]
        ):
            raise ValueError(f"the LoRA of '{pair.module}' makes {shape}, the layer has {tuple(weight.shape)}")
    for pair, weight in zip(pairs, weights, strict=True):
        if weight.is_meta:
            continue
        changed = merged(weight, pair, scale, device or weight.device).to(weight.dtype)
        if changed.device == weight.device:
            weight.copy_(changed)
        else:  # written into a weight that is mapped from a file, it would take memory beside the file's
            weight.data = changed.to(weight.device)


def merged(weight: Tensor, pair: LoraPair, scale: float, device: torch.device | str) -> Tensor:
    """The weight with the pair added, float32 on `device`."""
    up, down = (half.to(device, torch.float32).flatten(1) for half in (pair.up, pair.down))
    change = (up @ down) * (pair.scale * scale)
    return weight.to(device, torch.float32) + change.view_as(weight)
