"""Every hook call of the engine in one place, typed. `hookspecs.Pipeline` documents what each one means.

One `Hooks` belongs to one engine. pluggy calls the last registered first, so the plan is registered in reverse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy
from torch import Tensor

from omniavatar.errors import PlanError
from omniavatar.hookspecs import PROJECT, Pipeline

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Branch, Forward, Job, Step, Window
    from omniavatar.engine.unit import PipelineUnit
    from omniavatar.engine.windows import Span

Result = TypeVar("Result")


class Hooks:
    """The plan's hook implementations, called in plan order; `observers` (progress, timing) see every call first."""

    def __init__(self, units: Iterable[PipelineUnit], observers: Iterable[Any] = ()) -> None:
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(Pipeline)
        for unit in reversed(list(units)):
            self.manager.register(unit, name=unit.name)
        for observer in observers:
            self.manager.register(observer)
        self.manager.check_pending()
        self._call = self.manager.hook

    def setup(self, engine: Engine) -> None:
        self._call.setup(engine=engine)

    def begin_job(self, job: Job) -> None:
        self._call.begin_job(job=job)

    def plan_windows(self, job: Job) -> Sequence[Span] | None:
        result: Sequence[Span] | None = self._call.plan_windows(job=job)
        return result

    def plan_steps(self, window: Window) -> Sequence[Step]:
        return _answered("plan_steps", "a sampler such as 'euler'", self._call.plan_steps(window=window))

    def begin_window(self, window: Window) -> None:
        self._call.begin_window(window=window)

    def before_step(self, step: Step) -> None:
        self._call.before_step(step=step)

    def guide(self, step: Step) -> Tensor:
        return _answered("guide", "a guidance rule such as 'guidance'", self._call.guide(step=step))

    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return _answered("predict", "", self._call.predict(step=step, branches=branches))

    def embed(self, forward: Forward) -> None:
        self._call.embed(forward=forward)

    def run_blocks(self, forward: Forward) -> Tensor:
        return _answered("run_blocks", "a network such as 'transformer'", self._call.run_blocks(forward=forward))

    def before_block(self, forward: Forward, index: int) -> None:
        self._call.before_block(forward=forward, index=index)

    def after_block(self, forward: Forward, index: int) -> None:
        self._call.after_block(forward=forward, index=index)

    def unembed(self, forward: Forward) -> None:
        self._call.unembed(forward=forward)

    def advance(self, step: Step) -> Tensor:
        return _answered("advance", "a sampler such as 'euler'", self._call.advance(step=step))

    def after_step(self, step: Step) -> None:
        self._call.after_step(step=step)

    def end_window(self, window: Window) -> None:
        self._call.end_window(window=window)

    def end_job(self, job: Job) -> None:
        self._call.end_job(job=job)


def _answered(hook: str, remedy: str, result: Result | None) -> Result:
    """The first result of a hook that must have one."""
    if result is None:
        raise PlanError(f"no unit of the plan answers the hook '{hook}'; add {remedy}")
    return result
