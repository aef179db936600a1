"""fp8: the linear layers of the transformer's blocks in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from omniavatar.engine.saving import SavesMemory
from omniavatar.engine.unit import ALL, PipelineUnit, UnitSettings
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import nn

    from omniavatar.engine.engine import Engine
    from omniavatar.models.conversion import Conversion

FIRST_CAPABILITY = (8, 9)
"""Ada; Hopper is 9.0."""


class Fp8(PipelineUnit, SavesMemory):
    """Half the memory for weights, and faster steps on Hopper, for a small error: attention and feed-forward in 8 bits.

    The linear layers of the blocks are stored as float8_e4m3fn with a scale for every output. mode=compute also rounds
    what goes in, token by token, and multiplies in 8 bits (compute capability 8.9 or later, bfloat16; the CPU imitates
    that, with the same error). mode=storage brings weights back to full precision at each use, on any device.
    Weights are rounded one by one as they are loaded. Those that are fp8 in the file, with a scale for all or for every
    output, are taken as they are; other packed weights, of 8 bits or fewer, stay packed.
    """

    name = "fp8"
    optional_roles = (ALL,)
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
        networks: tuple[str, ...] | None = Field(
            None, min_length=1, description="roles of the networks; default: all that work in the steps"
        )

    settings: Settings

    def conversion(self, engine: Engine, role: str) -> Conversion | None:
        """The weights of a role's blocks in 8 bits; see `engine.conversion`. Raises PlanError if the GPU cannot."""
        from omniavatar.models.fp8 import Fp8Blocks

        settings, unit = self.settings, self
        if role not in self._wanted(engine):
            return None
        if settings.mode == "compute" and engine.device.type == "cuda":
            check_device(engine)

        class Frozen(Fp8Blocks):
            """Of a network that does not change any more."""

            def begin(self, network: nn.Module) -> None:
                engine.check_frozen(network, unit)
                super().begin(network)

        return Frozen(settings.mode, settings.scaling)

    @hookimpl
    def setup(self, engine: Engine) -> None:
        """Have the networks loaded, and with them converted."""
        for role in self._wanted(engine):
            engine.model(role)

    def _wanted(self, engine: Engine) -> list[str]:
        """The roles of the networks that it is for."""
        named = self.settings.networks
        return engine.roles_in_steps if named is None else [role for role in engine.roles if role in named]


def check_device(engine: Engine) -> None:
    """Raise PlanError if the GPU cannot multiply in 8 bits."""
    capability = torch.cuda.get_device_capability(engine.device)
    if capability < FIRST_CAPABILITY or engine.dtype != torch.bfloat16:
        what = f"compute capability {'.'.join(map(str, capability))} in {engine.dtype}"
        raise PlanError(
            f"fp8 multiplies on compute capability 8.9 or later in bfloat16, not on {what}; take fp8(mode=storage)"
        )
