"""Guidance within an interval of noise levels only (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from omniavatar.engine.scopes import Branch
from omniavatar.engine.step_cache import ranges
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.engine.scopes import Step, Window


class GuidanceInterval(PipelineUnit):
    """Fewer calls: guidance works at medium noise only, outside of it one call makes a step.

    Outside, the prediction with all conditions stands for all that guidance asks for, and a rule whose weights add up
    to 1 gives just that. If the sound has a scale of its own, keep_audio leaves out the negative prompt alone. The
    paper speaks of noise s relative to the picture, which is s / (1 + s) as a noise level here.
    """

    name = "guidance-interval"
    passes_on = ("substitute",)
    conflicts: ClassVar = {
        "guidance-parallel": "outside the interval there is one call for all ranks, which sequence-parallel can share"
    }

    class Settings(UnitSettings):
        low: float = Field(0.5, ge=0, le=1, description="noise level down to which guidance works; 0: to the end")
        high: float = Field(1.0, ge=0, le=1, description="noise level from which on guidance works; 1: from the start")
        keep_audio: bool = Field(False, description="outside, still guide by the audio if it has a scale of its own")

        @model_validator(mode="after")
        def _low_is_below_high(self) -> GuidanceInterval.Settings:
            if self.low > self.high:
                raise ValueError(f"low {self.low} is above high {self.high}")
            return self

    settings: Settings

    def guides(self, step: Step) -> bool:
        """Whether the step lies in the interval, open below as in the paper."""
        return bool(self.settings.low < step.sigma <= self.settings.high)

    def forecast(self, window: Window) -> Iterable[str]:
        numbers = [step.index + 1 for step in window.steps if self.guides(step)]
        yield f"guidance in {len(numbers)} of {len(window.steps)} steps" + (f": {ranges(numbers)}" if numbers else "")

    @hookimpl(wrapper=True)
    def plan_steps(self, window: Window) -> Generator[None, Sequence[Step], Sequence[Step]]:
        """Say in which steps guidance works."""
        steps = yield
        for step in steps:
            if self.guides(step):
                step.regimes.add(self.name)
        return steps

    @hookimpl
    def substitute(self, step: Step, branches: Sequence[Branch]) -> Sequence[Branch] | None:
        if len(branches) == 1 or self.guides(step):
            return None
        kept = [branch for branch in branches if self.settings.keep_audio and Branch.ALL not in branch.dropped]
        kept = kept or [Branch.fullest(branches)]
        return [branch if branch in kept else kept[-1] for branch in branches]
