"""Settings of units that act in a range of the steps, and how these are told to caches and to the user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from omniavatar.engine.unit import UnitSettings

if TYPE_CHECKING:
    from omniavatar.engine.scopes import Step


class StepRange(UnitSettings):
    """Base of the settings of a unit that acts in steps int(start n) to int(end n) of n, the last one excluded."""

    start: float = Field(0.0, ge=0, le=1, description="share of the steps before it begins to act; 0: from the first")
    end: float = Field(1.0, ge=0, le=1, description="share of the steps after which it stops; 1: after the last")

    @model_validator(mode="after")
    def _start_is_not_behind_end(self) -> StepRange:
        if self.start > self.end:
            raise ValueError(f"start {self.start} is behind end {self.end}")
        return self

    def steps(self, count: int) -> range:
        """The places, from 0, of the steps among `count` in which it acts."""
        return range(int(self.start * count), int(self.end * count))


def said_beforehand(name: str, steps: Sequence[Step], acting: range) -> Sequence[Step]:
    """The steps, those in which a unit acts with its name among their regimes, so that caches compute at the borders.

    Call it in a wrapper of `plan_steps`.
    """
    for place, step in enumerate(steps):
        if place in acting:
            step.regimes.add(name)
    return steps


def in_words(acting: range, count: int) -> str:
    """Such as "in 5 of 20 steps: 3-7", for a forecast; steps are counted from 1."""
    numbers = f": {acting.start + 1}-{acting.stop}" if len(acting) > 1 else f": {acting.stop}" if acting else ""
    return f"in {len(acting)} of {count} steps{numbers}"
