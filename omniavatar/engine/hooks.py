"""Every hook call of the engine in one place, typed. `hookspecs.Pipeline` documents what each one means.

One `Hooks` belongs to one run, or to the set-up of an engine. pluggy calls the last registered first, so the plan is
registered in reverse.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from omniavatar.engine.plan import hooks_of
from omniavatar.engine.surround import Around, surrounded
from omniavatar.errors import PlanError, PluginError, nearest
from omniavatar.hookspecs import PROJECT, Pipeline, hookimpl

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from omniavatar.engine.draft import Draft
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.outline import Length, Outline
    from omniavatar.engine.scopes import Branch, Forward, Frames, Job, Step, Window
    from omniavatar.engine.unit import PipelineUnit
    from omniavatar.engine.windows import Span


class Hooks:
    """The plan's hook implementations, called in plan order; `observers` (progress, timing) see every call first.

    around: what every hook of a unit runs in, such as a clock; see `surround`.
    """

    def __init__(
        self, units: Iterable[PipelineUnit], observers: Iterable[Any] = (), around: Sequence[Around] = ()
    ) -> None:
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(Pipeline)
        self._registered: dict[str, Any] = {}
        for unit in reversed(list(units)):
            self._registered[unit.name] = surrounded(unit, around)
            self._register(self._registered[unit.name], name=unit.name)
        for number, observer in enumerate((*observers, Skeleton()), start=1):
            self._register(observer, name=f"{type(observer).__name__} (observer {number})")
        self._call = self.manager.hook

    def _register(self, implementations: Any, name: str | None = None) -> None:
        """Register one unit or observer. Raises PluginError for a hook, or an argument of one, that does not exist."""
        try:
            self.manager.register(implementations, name=name)
            self.manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:  # ValueError: it is registered already
            reason = " ".join(str(error).split())
            who = name or type(implementations).__name__
            raise PluginError(f"'{who}' does not fit the hooks of omniavatar.hookspecs.Pipeline: {reason}") from None

    def plan_size(self, video: Outline) -> tuple[int, int] | None:
        result: tuple[int, int] | None = self._call.plan_size(video=video)
        return result

    def plan_length(self, video: Outline) -> Sequence[Length]:
        result: Sequence[Length] = self._call.plan_length(video=video)
        return result

    def check_request(self, draft: Draft) -> None:
        self._call.check_request(draft=draft)

    def setup(self, engine: Engine) -> None:
        self._call.setup(engine=engine)

    def begin_job(self, job: Job) -> None:
        self._call.begin_job(job=job)

    def plan_windows(self, job: Job) -> Sequence[Span] | None:
        result: Sequence[Span] | None = self._call.plan_windows(job=job)
        return result

    def noise(self, window: Window) -> Tensor:
        result: Tensor = _answered("noise", "", self._call.noise(window=window))
        return result

    def plan_steps(self, window: Window) -> Sequence[Step]:
        result: Sequence[Step] = _answered(
            "plan_steps", "a schedule such as 'schedule'", self._call.plan_steps(window=window)
        )
        return result

    def begin_window(self, window: Window, without: Iterable[PipelineUnit] = ()) -> None:
        """`begin_window` of all units but some, whose values the window has already."""
        left_out = [self._registered[unit.name] for unit in without if unit.name in self._registered]
        call = self.manager.subset_hook_caller("begin_window", left_out) if left_out else self._call.begin_window
        call(window=window)

    def before_step(self, step: Step) -> None:
        self._call.before_step(step=step)

    def guide(self, step: Step) -> Tensor:
        result: Tensor = _answered("guide", "a guidance rule such as 'guidance'", self._call.guide(step=step))
        return result

    def substitute(self, step: Step, branches: Sequence[Branch]) -> Sequence[Branch]:
        result: Sequence[Branch] = self._call.substitute(step=step, branches=branches) or branches
        return result

    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        result: Sequence[Tensor] = _answered("predict", "", self._call.predict(step=step, branches=branches))
        return result

    def call(self, forward: Forward) -> Tensor:
        result: Tensor = _answered("call", "", self._call.call(forward=forward))
        return result

    def embed(self, forward: Forward) -> None:
        self._call.embed(forward=forward)

    def run_blocks(self, forward: Forward) -> Tensor:
        result: Tensor = _answered(
            "run_blocks", "a network such as 'transformer'", self._call.run_blocks(forward=forward)
        )
        return result

    def before_block(self, forward: Forward, index: int) -> None:
        self._call.before_block(forward=forward, index=index)

    def run_block(self, forward: Forward, index: int) -> Tensor:
        result: Tensor = _answered("run_block", "", self._call.run_block(forward=forward, index=index))
        return result

    def after_block(self, forward: Forward, index: int) -> None:
        self._call.after_block(forward=forward, index=index)

    def unembed(self, forward: Forward) -> None:
        self._call.unembed(forward=forward)

    def advance(self, step: Step) -> Tensor:
        result: Tensor = _answered("advance", "a solver such as 'euler'", self._call.advance(step=step))
        return result

    def after_step(self, step: Step) -> None:
        self._call.after_step(step=step)

    def decode_latents(self, window: Window) -> Iterator[Tensor]:
        result: Iterator[Tensor] | None = self._call.decode_latents(window=window)
        return iter(()) if result is None else result

    def postprocess_frames(self, window: Window, frames: Frames) -> None:
        self._call.postprocess_frames(window=window, frames=frames)

    def output_frames(self, window: Window, start: int, frames: np.ndarray) -> None:
        self._call.output_frames(window=window, start=start, frames=frames)

    def end_window(self, window: Window) -> None:
        self._call.end_window(window=window)

    def end_job(self, job: Job) -> None:
        self._call.end_job(job=job)


class Skeleton:
    """The skeleton's own `noise`, `predict`, `call` and `run_block`, asked after all units."""

    @hookimpl(trylast=True)
    def noise(self, window: Window) -> Tensor:
        return window.loop.noise(window.index, window.span)

    @hookimpl(trylast=True)
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return step.loop.one_call_each(step, branches)

    @hookimpl(trylast=True)
    def call(self, forward: Forward) -> Tensor:
        return forward.loop.transformer(forward)

    @hookimpl(trylast=True)
    def run_block(self, forward: Forward, index: int) -> Tensor:
        return forward.loop.one_block(forward, index)


def _answered(hook: str, remedy: str, result: Any) -> Any:
    """The first result of a hook that must have one."""
    if result is None:
        raise PlanError(f"no unit of the plan answers the hook '{hook}'; add {remedy}")
    return result


SPECS = {name: spec for name, spec in vars(Pipeline).items() if hasattr(spec, f"{PROJECT}_spec")}


STREAMS = ("decode_latents",)
"""Hooks that may be generators without being wrappers."""


def hook_faults(unit_class: type[PipelineUnit]) -> Iterator[str]:
    """What would keep a unit's hooks from being called as `hookspecs.Pipeline` says, one line each."""
    marked = hooks_of(unit_class)
    for name in SPECS:
        if name not in marked and callable(getattr(unit_class, name, None)):
            yield f"its method {name} has the name of a hook and is not marked with @hookimpl, so it would never run"
    for attribute, options in marked.items():
        name, function = options["specname"] or attribute, getattr(unit_class, attribute)
        if name in SPECS:
            yield from _signature_faults(name, function)
        else:
            yield f"there is no hook '{name}'{nearest(name, SPECS)}"
        gives_many = name in STREAMS and inspect.isgeneratorfunction(function)
        if not gives_many and (options["wrapper"] or options["hookwrapper"]) != inspect.isgeneratorfunction(function):
            yield f"its {name} must have a yield if it is marked with wrapper=True, and only then"


def _signature_faults(hook: str, function: Any) -> Iterator[str]:
    """Arguments that pluggy would refuse, or never pass; an implementation may leave some out."""
    known = list(inspect.signature(SPECS[hook]).parameters)[1:]
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.name not in known:
            yield f"its {hook} takes '{parameter.name}'; the hook is {hook}({', '.join(known)})"
        elif parameter.default is not inspect.Parameter.empty:
            yield f"its {hook} has a default for '{parameter.name}', so that pluggy would never pass it"
