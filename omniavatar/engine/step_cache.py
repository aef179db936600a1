"""Caches that skip the blocks of whole steps, by a schedule that is known before the first step."""

from __future__ import annotations

from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Forward, Step, Window

OTHER_CACHE = "both are caches and would skip each other's work"


@dataclass(frozen=True)
class Schedule:
    """For every step of a network: whether its blocks are skipped."""

    skips: tuple[bool, ...]


@dataclass(frozen=True)
class Residual:
    """What the blocks added (b s d), in the step `index`."""

    added: Tensor
    index: int


class StepCache(PipelineUnit):
    """Base of such caches: what the blocks added when they last ran is added again in steps that are skipped.

    A schedule depends on the steps of its network and nothing else, so it is made once a window, is the same for all
    branches and ranks, and nothing waits for the device between the steps. A branch that was not there, or whose blocks
    did not run, when the schedule says that they did, is computed.
    """

    conflicts: ClassVar = {"first-block-cache": OTHER_CACHE}
    passes_on = ("run_blocks",)

    def schedule(self, steps: Sequence[Step], count: int, computed: Container[int]) -> Schedule:
        """What is done in these steps, all of one network, of a window with `count` steps.

        computed: places in `steps` that must not be skipped: the first one, and those where regimes change.
        """
        raise NotImplementedError

    def schedules(self, window: Window) -> dict[str, Schedule]:
        """The schedule of every network, by its role."""
        return {
            role: self.schedule(steps, len(window.steps), {0, *borders(steps)}) for role, steps in steps_by_role(window)
        }

    def forecast(self, window: Window) -> Iterable[str]:
        """Such as "dit: 6 of 10 steps skipped; computed: 1-2, 5, 8; guidance-interval changes at 5"."""
        schedules = self.schedules(window)
        for role, steps in steps_by_role(window):
            skips = schedules[role].skips
            computed = [step.index + 1 for step, skip in zip(steps, skips, strict=True) if not skip]
            line = f"{role}: {sum(skips)} of {len(skips)} steps skipped; computed: {ranges(computed)}"
            yield "; ".join([line, *(f"{name} changes at {ranges(at)}" for name, at in changes_of_regimes(steps))])

    @hookimpl(trylast=True)
    def begin_window(self, window: Window) -> None:
        """Last, when every step has its network. A step that is skipped knows the one whose residual it takes.

        A step that runs its blocks knows whether what they add is needed: whether the next step is skipped.
        """
        schedules = self.schedules(window)
        window[f"{self.name}.schedules"] = schedules
        for role, steps in steps_by_role(window):
            skips = schedules[role].skips
            source = 0
            for step, skip, is_needed in zip(steps, skips, [*skips[1:], False], strict=True):
                source = source if skip else step.index
                step[f"{self.name}.source"] = source
                step[f"{self.name}.is_needed"] = is_needed

    @hookimpl(wrapper=True, specname="run_blocks")
    def remember(self, forward: Forward) -> Generator[None, Tensor, Tensor]:
        """When the blocks ran, keep what they added if it is needed, and in any case let go of what they added before.

        It is as large as the tokens of all branches.
        """
        before, reuses = forward.x, self._residual(forward) is not None
        result = yield
        if not reuses:
            is_needed = forward.step.get(f"{self.name}.is_needed", default=False)
            residual = Residual(result - before, forward.step.index) if is_needed else None
            forward.memory[f"{self.name}.residual"] = residual
        return result

    @hookimpl
    def run_blocks(self, forward: Forward) -> Tensor | None:
        residual = self._residual(forward)
        return None if residual is None else forward.x + residual.added

    def _residual(self, forward: Forward) -> Residual | None:
        """What is reused in this call, if its blocks are skipped."""
        source: int | None = forward.step.get(f"{self.name}.source")
        residual: Residual | None = forward.memory.get(f"{self.name}.residual")
        if source is None or residual is None:
            return None
        return residual if source <= residual.index < forward.step.index else None


def borders(steps: Sequence[Step]) -> list[int]:
    """The places of steps whose regimes differ from those of the step before: what is computed there is new."""
    return [place for place, (before, step) in enumerate(pairwise(steps), start=1) if before.regimes != step.regimes]


def changes_of_regimes(steps: Sequence[Step]) -> Iterator[tuple[str, list[int]]]:
    """Every regime that begins or ends between these steps, with the numbers, from 1, of the steps where it does."""
    for regime in sorted(set().union(*(step.regimes for step in steps))):
        at = [
            step.index + 1 for before, step in pairwise(steps) if (regime in before.regimes) != (regime in step.regimes)
        ]
        if at:
            yield regime, at


def steps_by_role(window: Window) -> Iterator[tuple[str, list[Step]]]:
    """The steps of every network of a window, in order, with the network's role."""
    steps: dict[str, list[Step]] = {}
    for step in window.steps:
        steps.setdefault(step.expert, []).append(step)
    yield from steps.items()


def ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 5] -> "1-3, 5"."""
    runs: list[list[Any]] = [
        [number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
