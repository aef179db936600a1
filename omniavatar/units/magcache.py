"""MagCache (Ma et al. 2025, arXiv:2506.09045): skip the blocks of steps whose residual is about as large as before."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from omniavatar.engine.step_cache import OTHER_CACHE, Schedule, StepCache
from omniavatar.engine.unit import UnitSettings
from omniavatar.errors import CheckpointError

if TYPE_CHECKING:
    from omniavatar.engine.engine import Models
    from omniavatar.engine.plan import Plan
    from omniavatar.engine.scopes import Step


class MagCache(StepCache):
    """Cache: reuse what the blocks added in an earlier step while its magnitude is known to change little.

    How much the magnitude changes from step to step hardly depends on what is shown, so it is measured once for each
    checkpoint (`omni calibrate magcache`) and the whole schedule is known before the first step; `omni units plan`
    shows it. All branches share one curve, the mean of theirs, which hardly differ.
    """

    name = "magcache"
    conflicts: ClassVar = {**StepCache.conflicts, "teacache": OTHER_CACHE}

    class Settings(UnitSettings):
        threshold: float = Field(
            0.12, ge=0, le=10, description="sum of errors that forces a computed step; 0 skips none"
        )
        max_skips: int = Field(2, ge=1, le=1000, description="steps in a row that may be skipped")
        retention: float = Field(0.2, ge=0, le=1, description="share of the steps, the first ones, that are computed")
        ratios: tuple[float, ...] = Field(
            (), description="of the checkpoint: magnitude of each step's residual to that before, 1 for the first step"
        )

    settings: Settings

    def check(self, plan: Plan, models: Models) -> None:
        if not self.settings.ratios:
            raise CheckpointError(
                "unit 'magcache' has no magnitude ratios for this checkpoint; measure them with 'omni calibrate "
                "magcache' and give the table that it writes with --table, or leave the unit out with -magcache"
            )

    def schedule(self, steps: Sequence[Step], count: int, computed: Container[int]) -> Schedule:
        ratios = nearest(self.settings.ratios, count)
        retained = int(count * self.settings.retention)
        return decide([ratios[step.index] for step in steps], retained - steps[0].index, self.settings, computed)


def nearest(ratios: Sequence[float], count: int) -> list[float]:
    """The ratios at `count` evenly spread places, nearest neighbours, ends kept (the paper's interpolation)."""
    scale = (len(ratios) - 1) / max(count - 1, 1)
    return [ratios[round(index * scale)] for index in range(count)] if count > 1 else [ratios[-1]]


def decide(
    ratios: Sequence[float], retained: int, settings: MagCache.Settings, computed: Container[int] = (0,)
) -> Schedule:
    """The schedule for these ratios, of which the first `retained` are computed, and those at the places `computed`.

    The error of reusing a residual k steps later is |1 - product of k ratios|; errors add up while steps are skipped
    (section 3.3 of the paper).
    """
    skips = []
    product, error, skipped = 1.0, 0.0, 0
    for index, ratio in enumerate(ratios):
        product *= ratio
        error += abs(1 - product)
        may_skip = index >= retained and index not in computed and skipped < settings.max_skips
        is_skipped = may_skip and error < settings.threshold
        product, error, skipped = (product, error, skipped + 1) if is_skipped else (1.0, 0.0, 0)
        skips.append(is_skipped)
    return Schedule(tuple(skips))
