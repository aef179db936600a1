"""Blocks of a network that compute again on the way back what they would otherwise keep for gradients."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from omniavatar.models.wrapped import Wrapped, is_wrapped, wrap_each


def checkpoint_blocks(blocks: nn.ModuleList) -> None:
    """Have each of these blocks keep its input only."""
    wrap_each(blocks, checkpointed)


class Checkpointed(Wrapped):
    """A block that keeps nothing but its input for gradients."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the block makes of its inputs."""
        return checkpoint(self.block, *inputs, use_reentrant=False, **named)


def checkpointed(block: nn.Module) -> nn.Module:
    """The block, checkpointed once, also if several engines work with it."""
    return block if is_wrapped(block, Checkpointed) else Checkpointed(block)
