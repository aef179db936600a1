"""Units that change weights or store them in another form, asked before a network is loaded: `models.conversion`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.models.conversion import Conversion, Conversions


@runtime_checkable
class Converts(Protocol):
    """A unit that makes something of weights while they are loaded, instead of in `setup`."""

    def conversion(self, engine: Engine, role: str) -> Conversion | None:
        """What it makes of the weights of this role's network; None: nothing. Asked whenever the network is loaded.

        Raises an OmniError if it cannot work with this engine.
        """
        ...


def conversions_of(engine: Engine, role: str) -> Conversions:
    """What the plan makes of the weights of this role's network. In training they stay as they can be trained."""
    from omniavatar.models.conversion import Conversions

    units = engine.plan.units
    asked = (unit.conversion(engine, role) for unit in units if isinstance(unit, Converts))
    steps = [conversion for conversion in asked if conversion is not None]
    return Conversions(steps, engine.device, keeps_packed=not any(unit.trains for unit in units))
