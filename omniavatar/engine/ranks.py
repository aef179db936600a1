"""Which units work on which ranks, and over how many ranks each spreads its work: what the engine asks them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.unit import PipelineUnit


class SpreadsWork:
    """A unit that spreads work over ranks, such as sequence-parallel: `class Mine(PipelineUnit, SpreadsWork)`.

    fills_ranks: it takes the ranks that the other units leave, and so is asked after them.
    """

    fills_ranks: ClassVar[bool] = False

    def degrees(self, engine: Engine, ranks: int) -> dict[str, int]:
        """Over how many ranks the unit spreads work, by axis of `distributed.groups.AXES`, if `ranks` are left for it.

        Raises PlanError, with the valid choices, if it cannot.
        """
        raise NotImplementedError


class MainRankOnly:
    """A unit whose hooks only the first of several ranks runs, because it writes a file, say."""


def degrees_of(units: Iterable[PipelineUnit], engine: Engine, ranks: int) -> dict[str, int]:
    """Over how many of the ranks the units spread work, by axis; those that take what is left are asked last."""
    degrees: dict[str, int] = {}
    spreading = [unit for unit in units if isinstance(unit, SpreadsWork)]
    for unit in sorted(spreading, key=lambda unit: unit.fills_ranks):
        for axis, degree in unit.degrees(engine, ranks).items():
            degrees[axis] = degree
            ranks //= degree
    return degrees


def working(units: Iterable[PipelineUnit], *, is_main: bool) -> list[PipelineUnit]:
    """The units that a rank runs. is_main: it is the first."""
    return [unit for unit in units if is_main or not isinstance(unit, MainRankOnly)]
