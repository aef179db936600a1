"""Blocks of a network that torch's compiler runs, all of them by the same code.

compile_blocks(network.blocks, "inductor")
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn

from omniavatar.models.wrapped import Wrapped, is_wrapped, wrap_each


class Compiled(Wrapped):
    """A block that is run by compiled code.

    run: calls a block, (block, *its inputs).
    """

    def __init__(self, block: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__(block)
        self.run = run

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the block makes of its inputs."""
        return self.run(self.block, *inputs, **named)


def compile_blocks(blocks: nn.ModuleList, backend: str | Callable[..., Any], mode: str | None = None) -> None:
    """Have all these blocks run by one compiled function, once if several engines work with them.

    What else is around a block, such as what streams its weights, stays around the compiled one.
    The code is for any number of tokens from the beginning (`dynamic`): else torch would make it for the first number
    alone and anew when it meets another one, and use the new code for the first one too, so that the bits of a video
    would depend on those made before. It is as fast.
    backend, mode: see `torch.compile`.
    """
    run = torch.compile(with_own_code(call), backend=backend, mode=mode, dynamic=True)

    def compiled(block: nn.Module) -> nn.Module:
        if is_wrapped(block, Compiled):
            return block
        if isinstance(block, Wrapped):
            return block.around(compiled)
        return Compiled(block, run)

    wrap_each(blocks, compiled)


def call(block: nn.Module, *inputs: Any, **named: Any) -> Any:
    """What a block makes of its inputs."""
    return block(*inputs, **named)


def with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function again with a code object of its own.

    torch keeps what it has compiled at the code object, for all functions that share it, and gives up after eight
    variants: so many are soon made if several engines in one process run the same code.
    """
    assert isinstance(function, FunctionType)
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
