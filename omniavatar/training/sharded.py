"""Weights of which every rank has a part (torch's DTensor), beside those that every rank has whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from omniavatar.distributed.world import World


def local(tensor: Tensor) -> Tensor:
    """This rank's part; it shares its memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it. All ranks call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_like(weight: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor in parts, as `weight` is."""
    if isinstance(weight, DTensor) and tensor.ndim:
        return distribute_tensor(tensor, weight.device_mesh, weight.placements)
    return tensor


def mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested mappings and lists with every tensor changed."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, Mapping):
        return {name: mapped(value, change) for name, value in values.items()}
    return [mapped(value, change) for value in values] if isinstance(values, list) else values


def average(gradients: Sequence[Tensor], world: World) -> None:
    """Replace gradients by their mean over all ranks; those of sharded weights are that already."""
    own = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    if world.size == 1 or not own:
        return
    from torch import distributed

    together = torch.cat([gradient.flatten() for gradient in own])
    distributed.all_reduce(together)
    parts = together.div_(world.size).split([gradient.numel() for gradient in own])
    torch._foreach_copy_(own, [part.view_as(gradient) for part, gradient in zip(parts, own, strict=True)])


def clip(gradients: Sequence[Tensor], most: float | None) -> Tensor:
    """Scale gradients down to a common norm of at most `most`; returns the norm that they had."""
    from torch import distributed

    squares = {True: torch.zeros(()), False: torch.zeros(())}
    for is_sharded in squares:
        parts = [local(gradient) for gradient in gradients if isinstance(gradient, DTensor) == is_sharded]
        if parts:
            squares[is_sharded] = torch.stack(torch._foreach_norm(parts)).square().sum()
            if is_sharded:
                distributed.all_reduce(squares[True])
    norm = (squares[True].to(squares[False].device) + squares[False].to(squares[True].device)).sqrt()
    if most is not None and math.isfinite(most):
        torch._foreach_mul_([local(gradient) for gradient in gradients], (most / (norm + 1e-6)).clamp(max=1.0))
    return norm


def any_of(is_true: bool, world: World, device: torch.device) -> bool:
    """Whether it is true on any rank. All ranks call this together."""
    if world.size == 1:
        return is_true
    from torch import distributed

    flag = torch.tensor(float(is_true), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)
