"""Units that change weights or store them in another form, asked before a network is loaded: `models.conversion`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.unit import PipelineUnit
    from omniavatar.models.conversion import Conversion, Conversions


@runtime_checkable
class Converts(Protocol):
    """A unit that makes something of weights while they are loaded, instead of in `setup`."""

    def conversion(self, engine: Engine, role: str) -> Conversion | None:
        """What it makes of the weights of this role's network; None: nothing. Asked whenever the network is loaded.

        Raises an OmniError if it cannot work with this engine.
        """
        ...


class TrainsWeights:
    """A unit that changes weights while the engine works, so that they have to stay as they can be trained."""


def trains(units: Iterable[PipelineUnit]) -> bool:
    """Whether one of the units changes weights."""
    return any(isinstance(unit, TrainsWeights) for unit in units)


def conversions_of(engine: Engine, role: str) -> Conversions:
    """What the plan makes of the weights of this role's network. In training they stay as they can be trained."""
    from omniavatar.models.conversion import Conversions

    units = engine.plan.units
    asked = (unit.conversion(engine, role) for unit in units if isinstance(unit, Converts))
    steps = [conversion for conversion in asked if conversion is not None]
    return Conversions(steps, engine.device, keeps_packed=not trains(units))
