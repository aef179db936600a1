"""Where weights lie: what a unit says that keeps networks, or their blocks, elsewhere than on the device.

The engine asks it when it loads a network, an estimate when it counts memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omniavatar.engine.unit import ALL, names_faults

if TYPE_CHECKING:
    from omniavatar.engine.plan import Plan
    from omniavatar.engine.unit import PipelineUnit


@dataclass(frozen=True)
class Kept:
    """Where the blocks of a network are while it works; besides, it is on the device only while a unit works with it.

    on_device: blocks that are on the device at once, copies on their way included. in_host: blocks in host memory.
    copied: blocks that every call of the network copies to the device, while others compute.
    arriving: blocks that come along whenever the network comes to the device.
    """

    on_device: int
    in_host: int = 0
    copied: int = 0
    arriving: int = 0


class PlacesWeights:
    """A unit that keeps weights elsewhere than on the device, such as offload.

    `class Mine(PipelineUnit, PlacesWeights)`; the engine asks it when it loads a network, estimates count by it.

    host_roles: the roles whose networks are to be loaded in host memory, because the unit brings them to the device
        itself: some of its roles, or `ALL` that the plan works with.
    reads_blocks: it reads the weights of blocks itself: networks come from files without them, on the meta device.
    """

    host_roles: ClassVar[tuple[str, ...]] = ()
    reads_blocks: ClassVar[bool] = False

    @classmethod
    def faults(cls) -> Iterator[str]:
        """What the class says in another form, one line each."""
        return names_faults(cls, "host_roles")

    @classmethod
    def hosts(cls, role: str) -> bool:
        """Whether the network of this role is to be loaded in host memory."""
        return role in cls.host_roles or ALL in cls.host_roles

    def keeps(self, role: str, blocks: int, plan: Plan) -> Kept | None:
        """Where the `blocks` blocks of this role's network are while it works, if it is not always on the device."""
        return None


def placing_units(units: Iterable[PipelineUnit]) -> list[PlacesWeights]:
    """Those of the units that place weights."""
    return [unit for unit in units if isinstance(unit, PlacesWeights)]
