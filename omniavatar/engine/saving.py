"""How units save memory: what an error asks them that says that memory has run out (`out_of_memory`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from omniavatar.engine.scopes import Window
    from omniavatar.engine.unit import PipelineUnit

WORKS = ("load", "prepare", "denoise", "decode", "train", "host")
"""What can run out of memory: the device at one of these kinds of work, or the host."""


class SavesMemory:
    """A unit that saves memory, by being in the plan or with other settings: `class Mine(PipelineUnit, SavesMemory)`.

    eases: kinds of work, of `WORKS`, that take less memory with the unit in the plan; said when memory runs out.
    """

    eases: ClassVar[tuple[str, ...]] = ()

    def smaller(self, work: str, window: Window | None) -> Mapping[str, Any]:
        """Settings with which the unit takes less memory for a kind of work, of `WORKS`; none if there are no such.

        window: the one in which memory has run out.
        """
        return {}


def eased_by(unit_class: type[PipelineUnit]) -> tuple[str, ...]:
    """The kinds of work that take less memory with a unit of this class in the plan."""
    return unit_class.eases if issubclass(unit_class, SavesMemory) else ()


def smaller(unit: PipelineUnit, work: str, window: Window | None) -> Mapping[str, Any]:
    """Settings with which a unit takes less memory for a kind of work."""
    return unit.smaller(work, window) if isinstance(unit, SavesMemory) else {}
