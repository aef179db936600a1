"""fp8: the linear layers of the transformer's blocks in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine

FIRST_CAPABILITY = (8, 9)
"""Ada; Hopper is 9.0."""


class Fp8(PipelineUnit):
    """Half the memory for weights, and faster steps on Hopper, for a small error: attention and feed-forward in 8 bits.

    The linear layers of the blocks are stored as float8_e4m3fn with a scale for every output. mode=compute also rounds
    what goes in, token by token, and multiplies in 8 bits (compute capability 8.9 or later, bfloat16; the CPU imitates
    that, with the same error). mode=storage brings weights back to full precision at each use, on any device. Without
    offload the network is loaded in full precision first.
    """

    name = "fp8"
    roles = ("dit",)
    eases = ("prepare", "denoise", "decode")
    conflicts: ClassVar[Mapping[str, str]] = {
        "fsdp": "the weights are sharded in the precision of their files",
    }

    class Settings(UnitSettings):
        mode: Literal["compute", "storage"] = Field(
            "compute", description="compute: multiply in 8 bits; storage: only keep weights in 8 bits"
        )
        scaling: Literal["row", "tensor"] = Field(
            "row", description="a scale for every output and token, or one for a whole matrix"
        )
        networks: tuple[str, ...] = Field(
            ("dit", "dit2", "vace", "vace2"), min_length=1, description="roles of the networks"
        )

    settings: Settings

    @hookimpl(trylast=True)
    def setup(self, engine: Engine) -> None:
        """Last, since LoRA must have been merged into the weights before they are rounded."""
        from omniavatar.models.fp8 import replace_linears

        settings = self.settings
        if settings.mode == "compute" and engine.device.type == "cuda":
            check_device(engine)
        for role in engine.roles:
            if role not in settings.networks:
                continue
            network = engine.model(role)
            engine.check_frozen(network, self)
            for block in getattr(network, "blocks", ()):
                replace_linears(block, settings.mode, settings.scaling, engine.device)


def check_device(engine: Engine) -> None:
    """Raise PlanError if the GPU cannot multiply in 8 bits."""
    capability = torch.cuda.get_device_capability(engine.device)
    if capability < FIRST_CAPABILITY or engine.dtype != torch.bfloat16:
        what = f"compute capability {'.'.join(map(str, capability))} in {engine.dtype}"
        raise PlanError(
            f"fp8 multiplies on compute capability 8.9 or later in bfloat16, not on {what}; take fp8(mode=storage)"
        )
