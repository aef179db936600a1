"""Something around the calls of a module that leaves the names of its weights as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

PARTS = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
"""What of a module its weights are found by."""


class Wrapped(nn.Module):
    """Base of modules that stand in the place of another, `block`, whose parts are theirs under the same names.

    So state-dict keys, patterns of names, and what sets, moves or shards weights find no difference. Attributes that
    the wrapper has not are those of the block.
    """

    block: nn.Module

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # Not by `self.block = block`, which would make it a part with a name of its own.
        self.__dict__.update({name: block.__dict__[name] for name in PARTS}, block=block, training=block.training)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "block" not in self.__dict__:
                raise
            return getattr(self.block, name)

    def around(self, wrap: Callable[[nn.Module], nn.Module]) -> Wrapped:
        """Let this be around what `wrap` makes of the block; its weights must be the same."""
        self.__dict__["block"] = wrap(self.block)
        return self

    def train(self, mode: bool = True) -> Wrapped:
        """See `nn.Module.train`."""
        self.training = mode
        self.block.train(mode)
        return self


def is_wrapped(block: nn.Module, kind: type[Wrapped]) -> bool:
    """Whether a block is wrapped in this kind, or what it wraps is."""
    return isinstance(block, kind) or (isinstance(block, Wrapped) and is_wrapped(block.block, kind))


def wrap_each(blocks: nn.ModuleList, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Replace every block by what `wrap` makes of it; blocks that are one module stay one."""
    made = {block: wrap(block) for block in dict.fromkeys(blocks)}
    for index, block in enumerate(blocks):
        blocks[index] = made[block]
