"""Networks of a plan that wait elsewhere and come to the device to work; see `residency` and `models.streaming`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from omniavatar.errors import PlanError
from omniavatar.models.streaming import BlockStream, Parcel, Source, Streamed, Visitor

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.unit import PipelineUnit

SourceOf = Callable[[str, nn.Module, Sequence[Parcel]], Source]
"""Where the blocks of a network come from: (role, network, the parcel of each block)."""
ResidentOf = Callable[[str, nn.Module], Collection[int]]
"""Which blocks of a network stay while it works: (role, network)."""


def take_over(unit: PipelineUnit, engine: Engine, source_of: SourceOf, resident_of: ResidentOf | None = None) -> None:
    """Have all networks of the plan come to the device only when they work, and their blocks one by one.

    resident_of: which blocks of a network stay while it works; default: none. Raises PlanError in training, and if the
    networks are lent to two engines.
    """
    for role in engine.roles:
        network = engine.model(role)
        engine.check_frozen(network, unit)
        stream = None
        if blocks := blocks_of(role, network):
            parcels = [Parcel.of(block, engine.device) for block in blocks]
            resident = resident_of(role, network) if resident_of else ()
            stream = BlockStream(source_of(role, network, parcels), engine.device, resident)
            stream.attach(blocks)
        engine.residency.visitors[role] = Visitor(network, engine.device, stream)


def let_wait(unit: PipelineUnit, engine: Engine, roles: Iterable[str]) -> None:
    """Have networks of the plan wait in host memory, and come to the device as a whole when they work.

    Those that another unit brings to the device are left to it. Raises PlanError in training.
    """
    for role in roles:
        if role not in engine.residency.visitors:
            network = engine.model(role)
            engine.check_frozen(network, unit)
            engine.residency.visitors[role] = Visitor(network, engine.device)


def blocks_of(role: str, network: nn.Module) -> nn.ModuleList | None:
    """The blocks of a network, if it has some with weights."""
    blocks: nn.ModuleList | None = getattr(network, "blocks", None)
    if blocks is None or not any(True for _ in blocks.parameters()):
        return None
    if any(isinstance(block, Streamed) for block in blocks):
        raise PlanError(
            f"the blocks of '{role}' are streamed for another engine already; give each engine networks of its own"
        )
    return blocks
