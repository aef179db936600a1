"""Blocks fused by torch's compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from omniavatar.engine.unit import ALL, PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine


class Compile(PipelineUnit):
    """Faster steps: the blocks of the transformer are compiled, once for all of them, when the first video begins.

    That takes from seconds to a minute for every engine, once for videos and windows of any length. It needs what
    torch's compiler needs: Triton on a GPU, a C++ compiler on the CPU.
    """

    name = "compile"
    exact = True
    optional_roles = (ALL,)

    class Settings(UnitSettings):
        networks: tuple[str, ...] | None = Field(
            None, min_length=1, description="roles of the networks to compile; default: all that work in the steps"
        )
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
        from omniavatar.models.compiled import compile_blocks

        backend = self.settings.backend
        mode = self.settings.mode if backend == "inductor" else None
        wanted = engine.roles_in_steps if self.settings.networks is None else self.settings.networks
        for role in engine.roles:
            blocks = getattr(engine.model(role), "blocks", None) if role in wanted else None
            if blocks is not None:
                compile_blocks(blocks, backend, mode)
