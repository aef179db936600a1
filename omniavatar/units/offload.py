"""Offload: networks wait in host memory, and the blocks of the one that works come to the device one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from omniavatar.engine.placing import Kept, PlacesWeights
from omniavatar.engine.rehearsing import NotRehearsed
from omniavatar.engine.saving import SavesMemory
from omniavatar.engine.unit import ALL, PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from omniavatar.engine.engine import Engine
    from omniavatar.engine.plan import Plan


class Offload(PipelineUnit, PlacesWeights, SavesMemory, NotRehearsed):
    """Little GPU memory: weights wait in host memory, and each block comes to the device while the one before computes.

    Where a block computes for longer than it travels, as with the 14B model, that hides the copies. Every network is on
    the device only while a unit that works with it runs, and of its blocks two at a time; `resident` more of the
    transformer's stay there.
    """

    name = "offload"
    exact = True
    eases = ("load", "prepare", "denoise", "decode")
    optional_roles = (ALL,)
    host_roles = (ALL,)
    conflicts: ClassVar[Mapping[str, str]] = {
        "fsdp": "with sharded weights every GPU holds a part of each block already",
    }

    class Settings(UnitSettings):
        resident: int = Field(0, ge=0, le=1000, description="blocks of each transformer that stay on the device")
        resident_params: int | None = Field(
            None,
            ge=0,
            le=10**12,
            description="the same in parameters, instead of resident, those outside the blocks included; "
            "num_persistent_param_in_dit of the original OmniAvatar",
        )

    settings: Settings

    @hookimpl(wrapper=True)
    def setup(self, engine: Engine) -> Iterator[None]:
        """After all other units, which may change weights."""
        yield
        from omniavatar.engine.streaming import take_over
        from omniavatar.models.streaming import Packed

        take_over(self, engine, lambda role, network, parcels: Packed(parcels), partial(self._resident, engine.plan))

    def _resident(self, plan: Plan, role: str, network: Any) -> list[int]:
        return resident_blocks(network, network.blocks, self.settings) if role in plan.experts else []

    def keeps(self, role: str, blocks: int, plan: Plan) -> Kept | None:
        """What `resident` says; what resident_params means depends on the network."""
        from omniavatar.models.streaming import PLACES

        resident = min(self.settings.resident, blocks) if role in plan.experts else 0
        passing = blocks - resident
        copied = passing if passing > PLACES else 0
        return Kept(on_device=resident + min(PLACES, passing), in_host=blocks, copied=copied)


def resident_blocks(network: nn.Module, blocks: nn.ModuleList, settings: Offload.Settings) -> list[int]:
    """The blocks that stay, spread evenly; parameters outside the blocks count first."""
    from omniavatar.models.streaming import spread

    count = settings.resident
    if settings.resident_params is not None:
        within = sum(weight.numel() for weight in blocks.parameters())
        outside = sum(weight.numel() for weight in network.parameters()) - within
        count = max(0, settings.resident_params - outside) * len(blocks) // within
    return spread(min(count, len(blocks)), len(blocks))
