"""Every hook is called, at its place, with its arguments; wrappers nest in plan order."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest

from omniavatar.engine.draft import Draft
from omniavatar.engine.engine import Engine
from omniavatar.engine.hooks import Hooks
from omniavatar.engine.outline import Outline
from omniavatar.engine.plan import hooks_of
from omniavatar.engine.scopes import Branch, Forward, Frames, Job, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.errors import PlanError, PluginError
from omniavatar.hookspecs import Pipeline, hookimpl
from omniavatar.testing import FakeDiT
from tests.scenes import Scene, bare_job, denoising_units, fake_engine, fake_models, request


class Recorder(PipelineUnit):
    """Implements every hook of the pipeline and writes each call down."""

    name = "recorder"

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    @hookimpl
    def plan_size(self, video: Outline) -> None:
        self.log.append(f"plan_size {type(video).__name__}")

    @hookimpl
    def plan_length(self, video: Outline) -> None:
        self.log.append(f"plan_length {type(video).__name__}")

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        self.log.append("check_request")

    @hookimpl
    def setup(self, engine: Engine) -> None:
        self.log.append("setup")

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self.log.append("begin_job")

    @hookimpl
    def plan_windows(self, job: Job) -> None:
        self.log.append("plan_windows")

    @hookimpl
    def noise(self, window: Window) -> None:
        self.log.append(f"noise {window.index}")

    @hookimpl
    def plan_steps(self, window: Window) -> None:
        self.log.append(f"plan_steps {window.index}")

    @hookimpl
    def begin_window(self, window: Window) -> None:
        self.log.append(f"begin_window {window.index}")

    @hookimpl
    def before_step(self, step: Step) -> None:
        self.log.append(f"before_step {step.window.index}.{step.index}")

    @hookimpl
    def guide(self, step: Step) -> None:
        self.log.append(f"guide {step.index}")

    @hookimpl
    def substitute(self, step: Step, branches: Sequence[Branch]) -> None:
        self.log.append(f"substitute {' '.join(branch.name for branch in branches)}")

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> None:
        self.log.append(f"predict {' '.join(branch.name for branch in branches)}")

    @hookimpl
    def call(self, forward: Forward) -> None:
        self.log.append(f"call {forward.branches[0].name}")

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.log.append(f"embed {forward.branches[0].name}")

    @hookimpl
    def run_blocks(self, forward: Forward) -> None:
        self.log.append("run_blocks")

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        self.log.append(f"before_block {index}")

    @hookimpl
    def run_block(self, forward: Forward, index: int) -> None:
        self.log.append(f"run_block {index}")

    @hookimpl
    def after_block(self, forward: Forward, index: int) -> None:
        self.log.append(f"after_block {index}")

    @hookimpl
    def unembed(self, forward: Forward) -> None:
        self.log.append("unembed")

    @hookimpl
    def advance(self, step: Step) -> None:
        self.log.append(f"advance {step.index}")

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.log.append(f"after_step {step.window.index}.{step.index}")

    @hookimpl
    def decode_latents(self, window: Window) -> None:
        self.log.append(f"decode_latents {window.index}")

    @hookimpl
    def postprocess_frames(self, window: Window, frames: Frames) -> None:
        self.log.append(f"postprocess_frames {window.index}: {frames.start} to {frames.stop}")

    @hookimpl
    def output_frames(self, window: Window, start: int, frames: np.ndarray) -> None:
        self.log.append(f"output_frames {window.index}: {start} to {start + len(frames)}")

    @hookimpl
    def end_window(self, window: Window) -> None:
        self.log.append(f"end_window {window.index}")

    @hookimpl
    def end_job(self, job: Job) -> None:
        self.log.append("end_job")


class Around(PipelineUnit):
    """Writes down when it is entered and left around the calls that have a result."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name = name  # type: ignore[misc]
        self.log = log

    def around(self, hook: str) -> Generator[None, Any, Any]:
        self.log.append(f"{self.name} {hook} (")
        result = yield
        self.log.append(f") {self.name} {hook}")
        return result

    @hookimpl(wrapper=True)
    def guide(self) -> Generator[None, Any, Any]:
        return (yield from self.around("guide"))

    @hookimpl(wrapper=True)
    def run_blocks(self) -> Generator[None, Any, Any]:
        return (yield from self.around("run_blocks"))


NOT_PASSED = {"begin_window": ["without"]}
"""What calls take besides: whom not to ask."""
SPECS = {name: spec for name, spec in vars(Pipeline).items() if not name.startswith("_")}

ONE_CALL = """
call positive
embed positive
outer run_blocks (
inner run_blocks (
run_blocks
before_block 0
run_block 0
after_block 0
before_block 1
run_block 1
after_block 1
) inner run_blocks
) outer run_blocks
unembed
"""
GUIDED = """
outer guide (
inner guide (
guide {step}
substitute positive negative
predict positive negative
{calls}
) inner guide
) outer guide
"""


DECODED = (
    """
decode_latents 0
postprocess_frames 0: 0 to 1
output_frames 0: 0 to 1
postprocess_frames 0: 1 to 9
output_frames 0: 1 to 9
end_window 0
""",
    """
decode_latents 1
postprocess_frames 1: 4 to 5
postprocess_frames 1: 5 to 13
output_frames 1: 9 to 13
end_window 1
""",
)


def expected_log() -> list[str]:
    """Two windows, 5 frames of the first in the second too; two steps, branches, blocks and groups of frames each."""
    lines = ["plan_length Draft", "check_request", "setup", "plan_length Job", "begin_job", "plan_windows"]
    for window in range(2):
        lines += [f"noise {window}", f"plan_steps {window}", f"begin_window {window}"]
        for step in range(2):
            calls = ONE_CALL + ONE_CALL.replace("positive", "negative")
            lines += [f"before_step {window}.{step}", *GUIDED.format(step=step, calls=calls).split("\n")]
            lines += [f"advance {step}", f"after_step {window}.{step}"]
        lines += DECODED[window].split("\n")
    return [line for line in [*lines, "end_job"] if line]


def test_the_recorder_implements_every_hook() -> None:
    assert set(hooks_of(Recorder)) == set(SPECS)


def test_the_whole_call_log() -> None:
    log: list[str] = []
    units = [Recorder(log), Around("outer", log), Scene(frames=13), Around("inner", log), *denoising_units(scale=3)]
    engine = fake_engine(units, models=fake_models(dit=FakeDiT(num_layers=2)))
    engine.generate(request())
    assert log == expected_log()
    del log[:]
    engine.generate(request())
    assert log == [line for line in expected_log() if line != "setup"]


def test_units_can_be_left_out_of_the_beginning_of_a_window() -> None:
    log: list[str] = []

    class Speaker(PipelineUnit):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name  # type: ignore[misc]

        @hookimpl
        def begin_window(self, window: Window) -> None:
            log.append(self.name)

    units = [Speaker("a"), Speaker("b"), Speaker("c")]
    hooks = Hooks(units, [Speaker("observer")])
    window = Window(bare_job(), 0, Span(0, 9, 0, 0, 9))
    hooks.begin_window(window, without=[units[1], Speaker("of another plan")])
    assert log == ["observer", "a", "c"]
    hooks.begin_window(window)
    assert log[3:] == ["observer", "a", "b", "c"]


@pytest.mark.parametrize("hook", SPECS)
def test_the_calls_pass_what_the_specification_names(hook: str) -> None:
    specified = list(inspect.signature(SPECS[hook]).parameters)
    assert list(inspect.signature(getattr(Hooks, hook)).parameters) == [*specified, *NOT_PASSED.get(hook, ())]


def test_plan_order_observers_first_and_marks() -> None:
    log: list[str] = []

    class Speaker(PipelineUnit):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name  # type: ignore[misc]

        @hookimpl
        def begin_job(self, job: Job) -> None:
            log.append(self.name)

    class First(Speaker):
        @hookimpl(tryfirst=True)
        def begin_job(self, job: Job) -> None:
            log.append(self.name)

    class Last(Speaker):
        @hookimpl(trylast=True)
        def begin_job(self, job: Job) -> None:
            log.append(self.name)

    units = [Last("last"), Speaker("a"), Speaker("b"), First("first"), Speaker("c")]
    hooks = Hooks(units, [Speaker("observer")])
    hooks.begin_job(bare_job())
    assert log == ["first", "observer", "a", "b", "c", "last"]


def test_the_first_answer_counts_and_the_others_are_not_asked() -> None:
    asked: list[str] = []

    def answering(name: str, result: Any) -> PipelineUnit:
        def advance(self: PipelineUnit, step: Step) -> Any:
            asked.append(name)
            return result

        unit: PipelineUnit = type(name, (PipelineUnit,), {"name": name, "advance": hookimpl(advance)})()
        return unit

    hooks: Any = Hooks([answering("a", None), answering("b", 5), answering("c", 6)])
    assert hooks.advance(None) == 5
    assert asked == ["a", "b"]


@pytest.mark.parametrize("hook", ["plan_steps", "guide", "run_blocks", "advance"])
def test_a_plan_without_an_answer_says_what_is_missing(hook: str) -> None:
    hooks = Hooks([])
    with pytest.raises(PlanError, match=f"no unit of the plan answers the hook '{hook}'; add a"):
        getattr(hooks, hook)(None)


def test_a_misspelt_hook_is_refused_in_one_line() -> None:
    class Typo(PipelineUnit):
        name = "typo"

        @hookimpl
        def before_stepp(self, step: Step) -> None: ...

    with pytest.raises(PluginError) as caught:
        Hooks([Typo()])
    message = str(caught.value)
    assert message.startswith(
        "'typo' does not fit the hooks of omniavatar.hookspecs.Pipeline: unknown hook 'before_stepp'"
    )
    assert "\n" not in message


def test_an_unknown_argument_is_refused_also_of_an_observer() -> None:
    class Watcher:
        @hookimpl
        def before_step(self, stepp: Step) -> None: ...

    with pytest.raises(PluginError, match=r"'Watcher \(observer 1\)' does not fit .*'stepp'"):
        Hooks([], [Watcher()])
