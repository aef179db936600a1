"""Blocks fused by torch's compiler."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wrapped import Wrapped, is_wrapped, wrap_each


class Compile(PipelineUnit):
    """Faster steps: the blocks of the transformer are compiled, once for all of them, when the first video begins.

    That takes from seconds to a minute, for every engine, and again for windows of another length. It needs what
    torch's compiler needs: Triton on a GPU, a C++ compiler on the CPU.
    """

    name = "compile"
    exact = True
    roles = ("dit",)

    class Settings(UnitSettings):
        networks: tuple[str, ...] = Field(("dit", "dit2"), min_length=1, description="roles of the networks to compile")
        mode: Literal["default", "max-autotune-no-cudagraphs"] = Field(
            "default", description="how long to look for fast kernels"
        )
        backend: Literal["inductor", "aot_eager", "eager"] = Field(
            "inductor",
            description="torch's compiler; the others only trace, to find what does not compile",
        )

    settings: Settings

    @hookimpl(trylast=True)
    def setup(self, engine: Engine) -> None:
        for role in engine.roles:
            blocks = getattr(engine.model(role), "blocks", None) if role in self.settings.networks else None
            if blocks is not None:
                compile_blocks(blocks, self.settings)


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


def compile_blocks(blocks: nn.ModuleList, settings: Compile.Settings) -> None:
    """Have all these blocks run by one compiled function, once if several engines work with them.

    What else is around a block, such as what streams its weights, stays around the compiled one.
    """
    mode = settings.mode if settings.backend == "inductor" else None
    run = torch.compile(with_own_code(call), backend=settings.backend, mode=mode)

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
