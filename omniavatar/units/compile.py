"""Blocks fused by torch's compiler."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from omniavatar.engine.engine import Engine
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl


class Compile(PipelineUnit):
    """Faster steps: the blocks of the transformer are compiled, once for all of them, when the first video begins.

    That takes from seconds to a minute, and again for windows of another length. It needs what torch's compiler needs:
    Triton on a GPU, a C++ compiler on the CPU.
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
        settings = self.settings
        mode = settings.mode if settings.backend == "inductor" else None
        for role in engine.roles:
            if role in settings.networks:
                for block in getattr(engine.model(role), "blocks", ()):
                    block.compile(backend=settings.backend, mode=mode)
