"""What the tests of the networks share: random weights and noise, and the hash of a file."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from omniavatar.models.wan_dit import BlockInputs
from omniavatar.testing.weights import randomized, relative_error

__all__ = ["checkpoint_hash", "given", "noise", "randomized", "relative_error"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def checkpoint_hash(state: dict[str, Tensor]) -> str:
    """The md5 by which published files are told apart: names and shapes, sorted."""
    items = [f"{name}:{'_'.join(map(str, tensor.shape))}" for name, tensor in state.items()]
    return hashlib.md5(",".join(sorted([*items, *state])).encode()).hexdigest()


def given(**conditions: Tensor) -> BlockInputs:
    """What an attention layer is given that looks at these conditions alone."""
    return BlockInputs(torch.empty(0), torch.empty(0), conditions)
