"""Conditions that branches may drop, and what stands for nothing then; training asks it of units that bring them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from omniavatar.errors import nearest

if TYPE_CHECKING:
    from omniavatar.engine.unit import PipelineUnit


class BringsConditions:
    """A unit that brings conditions which training drops at random: `class Mine(PipelineUnit, BringsConditions)`.

    nulls: for every condition that it brings and branches may drop: values that it provides, each with the value that
        stands for nothing, zeros if it is not there; training drops conditions by them.
    """

    nulls: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    provides: ClassVar[tuple[str, ...]]

    @classmethod
    def faults(cls) -> Iterator[str]:
        """What the class says in another form, one line each."""
        nulls = cls.nulls
        if not isinstance(nulls, Mapping) or not all(isinstance(forms, Mapping) for forms in nulls.values()):
            yield f"its nulls are {nulls!r} and not values by condition, such as {{'audio': {{'rows': 'silent_rows'}}}}"
            return
        for name in (name for forms in nulls.values() for pair in forms.items() for name in pair):
            if name not in cls.provides:
                yield f"its nulls name '{name}', which provides does not{nearest(str(name), cls.provides)}"


def nulls_of(units: Iterable[PipelineUnit]) -> dict[str, dict[str, str]]:
    """By condition: the values that it is, each with the one that stands for nothing (zeros if it is not there)."""
    found: dict[str, dict[str, str]] = {}
    for unit in units:
        for condition, nulls in unit.nulls.items() if isinstance(unit, BringsConditions) else ():
            found.setdefault(condition, {}).update(nulls)
    return found
