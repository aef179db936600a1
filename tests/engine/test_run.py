"""What a program can do with a run: take its chunks, go on elsewhere, change settings, cancel, fail, be busy."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import omniavatar
from omniavatar.engine.engine import Engine
from omniavatar.engine.loop import Loop
from omniavatar.engine.outline import Length
from omniavatar.engine.progress import Progress, Status
from omniavatar.engine.run import Run
from omniavatar.engine.scopes import Branch, Forward, Frames, Job, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.errors import Cancelled, EngineBusy, InputError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.units import FirstBlockCache, Guidance, SmoothBorders
from tests.scenes import denoising_units, fake_engine, fake_models, request


def engine(*units: PipelineUnit, frames: int | None = 26, **options: Any) -> Engine:
    """Windows of 9 frames that share 5."""
    return fake_engine([scene(frames), *denoising_units(steps=3), *units], **options)


class Quiet(PipelineUnit):
    """Gives a video its length and texts so weak that the noise stays to be seen."""

    name = "quiet"

    def __init__(self, frames: int | None) -> None:
        super().__init__()
        self.frames = frames

    @hookimpl
    def plan_length(self) -> Length | None:
        return None if self.frames is None else Length(self.frames)

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.conditions["text"] = forward.stacked(
            lambda branch: torch.full((1, 1, 1), -0.05 if branch.drops("text") else 0.05)
        )


def scene(frames: int | None = 26) -> Quiet:
    return Quiet(frames)


def shown(run: Run) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in run])


# Chunks ---------------------------------------------------------------------------------------------------------------


def test_chunks_are_the_video_in_order() -> None:
    with engine().start(request()) as run:
        chunks = list(run)
        result = run.result()
    assert [chunk.index for chunk in chunks] == list(range(6))
    assert {chunk.count for chunk in chunks} == {6}
    assert [chunk.start for chunk in chunks] == [0, 9, 13, 17, 21, 25]
    assert all(chunk.frames.dtype == np.uint8 and chunk.frames.shape[1:] == (16, 16, 3) for chunk in chunks)
    assert sum(len(chunk.frames) for chunk in chunks) == result.frames == 26
    assert (result.video, result.fps, result.size, result.seed) == (None, 25, (16, 16), 42)
    assert result.seconds == 26 / 25
    assert result.timings.windows == 6
    assert result.timings.steps == 18
    assert result.manifest["plan"] == [repr(unit) for unit in result.plan.units]


def test_a_chunk_comes_before_the_next_is_begun() -> None:
    begun = []

    class Log:
        @hookimpl
        def begin_window(self, window: Window) -> None:
            begun.append(window.index)

    with engine().start(request(), observers=[Log()]) as run:
        for chunk in run:
            assert begun == list(range(chunk.index + 1))


def test_frames_of_a_chunk_come_before_its_last_ones_are_decoded() -> None:
    """A decoder that gives a frame at a time: after each the reader has it."""
    seen, decoded = [], []

    class Slow(PipelineUnit):
        """Decodes frame by frame."""

        name = "slow"
        provides = ("frames",)

        @hookimpl
        def decode_latents(self, window: Window) -> Iterator[torch.Tensor]:
            for number in range(window.span.frames):
                decoded.append(number)
                yield torch.full((1, 3, 1, 16, 16), number / 10)

    units = [unit for unit in denoising_units() if unit.name != "vae-decode"]
    with fake_engine([scene(9), *units, Slow()]).start(request()) as run:
        for group in run.groups():
            seen.append((group.start, len(decoded), int(group.frames[0, 0, 0, 0])))
    assert seen == [(number, number + 1, round(number * 25.5)) for number in range(9)]


def test_groups_are_the_same_video() -> None:
    maker = engine(SmoothBorders())
    with maker.start(request()) as run:
        chunks = shown(run)
    with maker.start(request()) as run:
        groups = list(run.groups())
        assert run.result().frames == 26
    assert np.array_equal(np.concatenate([group.frames for group in groups]), chunks)
    assert [group.start for group in groups] == sorted(group.start for group in groups)


def test_iterating_again_goes_on() -> None:
    maker = engine()
    with maker.start(request()) as run:
        first = next(iter(run))
        rest = [chunk.index for chunk in run]
    assert (first.index, rest) == (0, [1, 2, 3, 4, 5])


def test_a_result_makes_what_is_missing() -> None:
    with engine().start(request()) as run:
        next(iter(run))
        assert run.result().timings.windows == 6
        assert list(run) == []


def test_two_ways_of_iterating_do_not_mix() -> None:
    with engine().start(request()) as run:
        next(iter(run))
        with pytest.raises(InputError, match="by chunks or by groups"):
            run.groups()


def test_frames_belong_to_the_caller() -> None:
    maker = engine()
    with maker.start(request()) as run:
        for chunk in run:
            chunk.frames[:] = 0
    with maker.start(request()) as run:
        assert shown(run).any()


def test_the_callers_own_code_is_not_in_inference_mode() -> None:
    with engine().start(request()) as run:
        for _ in run:
            assert not torch.is_inference_mode_enabled()


# Settings and observers of a run --------------------------------------------------------------------------------------


def test_settings_hold_for_one_run() -> None:
    maker = engine()
    assert maker.generate(request(), settings={"schedule": {"steps": 2}}).timings.steps == 12
    assert maker.generate(request()).timings.steps == 18
    assert maker.plan.units[3].settings.steps == 3


def test_other_settings_are_those_of_an_engine_opened_with_them() -> None:
    with fake_engine([scene(), *denoising_units(3, scale=2.0)]).start(request()) as run:
        expected = shown(run)
    maker = engine()
    with maker.start(request(), settings={"guidance": {"scale": 2}}) as run:
        assert np.array_equal(shown(run), expected)
    with maker.start(request()) as run:
        assert not np.array_equal(shown(run), expected)


class Tuned(PipelineUnit):
    """Has used its setting when the engine is set up."""

    name = "tuned"

    class Settings(UnitSettings):
        strength: int = 1

    @hookimpl
    def setup(self, engine: Engine) -> None:
        engine.values["tuned.strength"] = self.settings.strength


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuned": {"strength": 2}}, "unit 'tuned' used its settings when the engine was set up; open another engine"),
        ({"eulr": {"steps": 2}}, "settings: unit 'eulr' is not in the plan; did you mean 'euler'"),
        ({"schedule": {"stps": 2}}, "unit 'schedule' has no setting 'stps'; did you mean 'steps'"),
        ({"schedule": {"steps": 0}}, "unit 'schedule': steps = 0: input should be greater than or equal to 1"),
        ({"euler": 5}, "settings: those of 'euler' are 5 and not a mapping"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_runs(settings: Any, message: str) -> None:
    maker = engine(Tuned())
    with pytest.raises(PlanError, match=message):
        maker.start(request(), settings=settings)
    assert maker.generate(request(), settings={"tuned": {"strength": 1}}).frames == 26


def test_observers_see_their_own_run_alone() -> None:
    maker, seen = engine(), []

    class Steps:
        @hookimpl
        def after_step(self, step: Step) -> None:
            seen.append(step.index)

    maker.generate(request(), observers=[Steps()])
    assert len(seen) == 18
    maker.generate(request())
    assert len(seen) == 18


def test_progress_says_how_far_it_is() -> None:
    statuses: list[Status] = []
    engine().generate(request(), observers=[Progress(statuses.append)])
    inside = [status for status in statuses if status.total and status.phase in ("denoising", "decoding")]
    assert [status.done for status in inside] == sorted(status.done for status in inside)
    assert inside[-1].done == inside[-1].total == 24
    assert inside[-1].seconds_done == 26 / 25
    assert {status.phase for status in statuses} == {"loading", "preparing", "denoising", "decoding", "writing"}
    assert [status.chunk for status in statuses if status.milestone] == list(range(6))


# Cancelling, failing --------------------------------------------------------------------------------------------------


Alive = Callable[[], list[Any]]
ROLES = ("dit", "vae")
SCOPES = (Window, Step, Branch, Forward, Frames, Job, Loop)


@pytest.fixture
def alive() -> Iterator[Callable[[], list[Any]]]:
    """Gives the scopes that were made in this test and are not freed, although what is in a circle is not collected."""
    gc.collect()
    gc.disable()
    older = {id(each) for each in gc.get_objects() if type(each) in SCOPES}
    try:
        yield lambda: [each for each in gc.get_objects() if type(each) in SCOPES and id(each) not in older]
    finally:
        gc.enable()
        gc.collect()


class EndsIn:
    """Something happens in step `count`."""

    def __init__(self, count: int, do: Any) -> None:
        self.count, self.do = count, do

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.count -= 1
        if self.count == 0:
            self.do()


def test_nothing_is_held_after_a_success(alive: Alive) -> None:
    maker = engine(FirstBlockCache(threshold=10))
    result = maker.generate(request())
    assert result.frames == 26
    assert alive() == []


def test_a_cancel_takes_effect_before_the_next_step_and_leaves_nothing(alive: Alive) -> None:
    maker = engine(FirstBlockCache(threshold=10))
    runs: list[Run] = []
    run = maker.start(request(), observers=[ends := EndsIn(8, lambda: runs[0].cancel())])  # noqa: PLW0108
    runs.append(run)
    with pytest.raises(Cancelled, match="cancelled"):
        list(run)
    assert ends.count == 0
    assert alive() == []
    assert run.is_over
    with pytest.raises(Cancelled):
        run.result()
    assert maker.generate(request()).frames == 26


def test_a_run_that_nobody_works_on_is_cancelled_at_once(alive: Alive) -> None:
    maker = engine()
    run = maker.start(request())
    first = next(iter(run))
    thread = threading.Thread(target=run.cancel)
    thread.start()
    thread.join()
    assert alive() == []
    with pytest.raises(Cancelled):
        next(iter(run))
    assert len(first.frames) == 9
    run.cancel()


def test_cancelling_from_another_thread(alive: Alive) -> None:
    maker, begun = engine(), threading.Event()
    is_cancelled = threading.Event()

    def wait() -> None:
        begun.set()
        is_cancelled.wait(10)

    run = maker.start(request(), observers=[EndsIn(4, wait)])

    def cancel() -> None:
        begun.wait(10)
        run.cancel()
        is_cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        run.result()
    thread.join()
    assert alive() == []


def hook_that_cancels(hook: str, runs: list[Run]) -> Any:
    """An observer that cancels the run in a hook of its second window."""

    def cancel(self: Any, window: Window) -> None:
        if window.index == 1:
            runs[0].cancel()

    return type("Cancels", (), {hook: hookimpl(cancel)})()


@pytest.mark.slow
@pytest.mark.parametrize("by", [list, Run.result, lambda run: list(run.groups())], ids=["chunks", "result", "groups"])
@pytest.mark.parametrize("hook", ["plan_steps", "begin_window", "postprocess_frames", "output_frames", "end_window"])
def test_a_cancel_in_any_hook_ends_the_run(alive: Alive, hook: str, by: Callable[[Run], Any]) -> None:
    maker = engine()
    runs: list[Run] = []
    run = maker.start(request(), observers=[hook_that_cancels(hook, runs)])
    runs.append(run)
    with pytest.raises(Cancelled):
        by(run)
    assert run.is_over
    assert alive() == []
    assert maker.generate(request()).frames == 26


def test_a_forgotten_run_closes_what_it_has_opened() -> None:
    ends: list[Any] = []

    class Opener(PipelineUnit):
        """Opens something."""

        name = "opener"

        @hookimpl
        def begin_job(self, job: Job) -> None:
            job.resources.push(lambda kind, error, trace: ends.append(type(error)))

    maker = engine(Opener())
    for _ in maker.start(request()):
        break
    gc.collect()
    assert ends == [Cancelled]


def test_two_threads_share_the_frames_of_a_run() -> None:
    """Each gets chunks that the other does not get, and none is lost."""
    with engine().start(request()) as run, ThreadPoolExecutor(2) as pool:
        items = iter(run)
        parts = list(pool.map(lambda _: [chunk.index for chunk in items], range(2)))
        assert sorted(parts[0] + parts[1]) == list(range(6))


def set_and_wait(begun: threading.Event) -> None:
    begun.set()
    time.sleep(0.05)


def test_leaving_the_with_block_stops_who_is_at_work() -> None:
    maker, begun = engine(), threading.Event()
    errors: list[BaseException] = []

    def work(run: Run) -> None:
        try:
            run.result()
        except Cancelled as error:
            errors.append(error)

    with maker.start(request(), observers=[EndsIn(4, partial(set_and_wait, begun))]) as run:
        thread = threading.Thread(target=work, args=[run])
        thread.start()
        begun.wait(10)
    assert run.is_over
    thread.join()
    assert len(errors) == 1
    assert maker.generate(request()).frames == 26


def test_closing_the_engine_waits_for_the_run_in_work() -> None:
    def work() -> None:
        with pytest.raises(Cancelled):
            run.result()

    maker, begun = engine(), threading.Event()
    run = maker.start(request(), observers=[EndsIn(4, partial(set_and_wait, begun))])
    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    maker.close()
    assert run.is_over
    assert dict(maker.networks) == {}
    thread.join()
    assert dict(maker.networks) == {}


def test_two_threads_load_each_network_once() -> None:
    loaded: list[str] = []

    class Slow(type(fake_models())):  # type: ignore[misc]
        def load(self, role: str, **options: Any) -> Any:
            loaded.append(role)
            time.sleep(0.02)
            return super().load(role, **options)

    models = Slow(**{role: fake_models().load(role, device=torch.device("cpu"), dtype=torch.float32) for role in ROLES})
    maker = fake_engine([scene(9), *denoising_units()], models=models)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: maker.load(), range(3)))
    assert sorted(loaded) == ["dit", "vae"]


@pytest.mark.parametrize("error", [ValueError("no room"), KeyboardInterrupt()])
def test_a_set_up_that_failed_is_told_and_keeps_nothing(alive: Alive, error: BaseException) -> None:
    class Fails(PipelineUnit):
        """Cannot be set up."""

        name = "fails"

        @hookimpl
        def setup(self, engine: Engine) -> None:
            raise type(error)(*error.args)

    maker = engine(Fails())
    with pytest.raises(type(error)):
        maker.generate(request())
    for _ in range(2):
        with pytest.raises(InputError, match=rf"could not be set up before \({type(error).__name__}"):
            maker.generate(request())
    assert alive() == []


def test_a_cancel_while_models_are_loaded_ends_the_run_and_not_the_engine(alive: Alive) -> None:
    maker = engine()
    run = maker.start(request(), observers=[Progress(lambda status: run.cancel())])
    with pytest.raises(Cancelled):
        run.result()
    assert alive() == []
    assert len(maker.networks) < 2
    assert maker.generate(request()).frames == 26


def test_a_failure_leaves_nothing_and_the_next_video_is_the_same(alive: Alive) -> None:
    maker = engine(FirstBlockCache(threshold=10))
    with maker.start(request()) as run:
        expected = shown(run)

    def fail() -> None:
        raise RuntimeError("a network is broken")

    with pytest.raises(RuntimeError, match="broken"):
        maker.generate(request(), observers=[EndsIn(8, fail)])
    assert alive() == []
    with maker.start(request()) as run:
        assert np.array_equal(shown(run), expected)


def test_leaving_the_with_block_early_ends_the_run(alive: Alive) -> None:
    maker = engine()
    with maker.start(request()) as run:
        next(iter(run))
    assert run.is_over
    assert alive() == []
    for ask in (run.result, lambda: next(iter(run)), lambda: run.job):
        with pytest.raises(Cancelled):
            ask()


def test_resources_are_told_how_it_ended() -> None:
    ends: list[Any] = []

    class Opener(PipelineUnit):
        """Opens something."""

        name = "opener"

        @hookimpl
        def begin_job(self, job: Job) -> None:
            job.resources.push(lambda kind, error, trace: ends.append(error))

    maker = engine(Opener())
    maker.generate(request())

    def leave(do: Callable[[Run], None]) -> None:
        with maker.start(request()) as run:
            next(iter(run))
            do(run)
            next(iter(run))

    def fail(run: Run) -> None:
        raise KeyError("the caller's own")

    with pytest.raises(Cancelled):
        leave(Run.cancel)
    with pytest.raises(KeyError):
        leave(fail)
    assert [type(end) for end in ends] == [type(None), Cancelled, KeyError]


# One at a time --------------------------------------------------------------------------------------------------------


def test_a_second_caller_is_told_that_the_engine_is_busy() -> None:
    maker, errors = engine(), []

    def second() -> None:
        try:
            maker.generate(request())
        except EngineBusy as error:
            errors.append(str(error))

    def call() -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    assert maker.generate(request(), observers=[EndsIn(4, call)]).frames == 26
    assert errors == ["the engine is making another video; wait until it is done, cancel it, or open another engine"]
    assert maker.generate(request()).frames == 26


def test_a_run_that_was_forgotten_keeps_nobody_waiting() -> None:
    maker = engine()
    for _ in maker.start(request()):
        break
    assert maker.generate(request()).frames == 26


def test_a_closed_engine_gives_everything_back() -> None:
    with engine() as maker:
        run = maker.start(request())
        next(iter(run))
        closed: list[bool] = []
        maker.resources.callback(closed.append, True)
    assert (closed, dict(maker.networks), run.is_over) == ([True], {}, True)
    for call in (maker.start, maker.generate):
        with pytest.raises(InputError, match="engine is closed"):
            call(request())


def test_what_is_constant_for_all_videos_is_kept_by_the_engine() -> None:
    made = []

    class Once(PipelineUnit):
        """Makes something once."""

        name = "once"
        provides = ("number",)

        @hookimpl
        def begin_job(self, job: Job) -> None:
            job.engine.values.once("once.number", self.make)
            job["number"] = job["once.number"]

        def make(self) -> int:
            made.append(1)
            return 7

    maker = engine(Once())
    maker.generate(request())
    maker.generate(request())
    assert made == [1]


# Going on -------------------------------------------------------------------------------------------------------------


def test_a_state_is_enough_to_go_on(tmp_path: Path) -> None:
    maker, states = engine(SmoothBorders()), []
    with maker.start(request()) as run:
        frames = []
        for chunk in run:
            frames.append(chunk.frames)
            states.append(run.state())
    for number, state in enumerate(states, start=1):
        save_file(dict(state), tmp_path / "state.safetensors")
        for resume in (load_file(tmp_path / "state.safetensors"), tmp_path / "state.safetensors"):
            with engine(SmoothBorders()).start(request(), resume=resume) as run:
                rest = list(run)
                assert run.result().frames == 26
            assert [chunk.index for chunk in rest] == list(range(number, 6))
            assert all(np.array_equal(chunk.frames, frames[chunk.index]) for chunk in rest)


def test_a_state_holds_what_the_next_window_reads_and_nothing_else() -> None:
    with engine().start(request()) as run:
        next(iter(run))
        state = run.state()
    assert set(state) == {"run.window", "run.start", "run.request", "previous.frames"}
    assert state["previous.frames"].shape == (1, 3, 5, 16, 16)


class Recollection(PipelineUnit):
    """Adds to the tokens of every branch what the calls for it have come to in all windows before."""

    name = "recollection"

    @hookimpl
    def run_block(self, forward: Forward, index: int) -> torch.Tensor | None:
        if index:
            return None
        before = forward.lasting.get("recollection.sum", torch.zeros(()))
        if forward.step.is_last:
            forward.lasting["recollection.sum"] = before + forward.x.mean() / 10
        return forward.x + before


def test_what_calls_leave_for_those_of_later_windows_is_part_of_the_state() -> None:
    units = Recollection(), Guidance(scale=3.0)
    maker = fake_engine([scene(), *[unit for unit in denoising_units() if unit.name != "guidance"], *units])
    with maker.start(request()) as run:
        states, frames = [], []
        for chunk in run:
            frames.append(chunk.frames)
            states.append(run.state())
            job = run.loop.job
    assert not job.memories, "a run that is over holds nothing"
    name = "recollection.sum"
    assert {key for key in states[1] if key.startswith("memory.")} == {
        f"memory.dit/positive/{name}",
        f"memory.dit/negative/{name}",
    }
    assert not states[1][f"memory.dit/positive/{name}"].equal(states[2][f"memory.dit/positive/{name}"])
    with maker.start(request(), resume=states[2]) as run:
        assert all(np.array_equal(chunk.frames, frames[chunk.index]) for chunk in run)
    without = {key: value for key, value in states[2].items() if not key.startswith("memory.")}
    with maker.start(request(), resume=without) as run:
        assert not all(np.array_equal(chunk.frames, frames[chunk.index]) for chunk in run)


@pytest.mark.parametrize(
    ("state", "other", "message"),
    [
        ({}, {}, "no state of a run: it has no tensor 'run.window'"),
        ({"run.window": torch.zeros(2, dtype=torch.int64)}, {}, "no state of a run: it has no tensor 'run.window'"),
        ({"run.window": 1}, {}, "no state of a run: it has no tensor 'run.window'"),
        ("previous.frames", {}, "the state lacks 'previous.frames', which this plan continues from"),
        ((2, 2), {}, "the state's 'previous.frames' has 2x2 pixels, and the video 16x16"),
        (None, {"seed": 7}, "of another video: its seed is 42, and here it is 7"),
        (None, {"height": 32, "width": 32}, "its height is 16, and here it is 32"),
        (None, {"fps": 5}, "its frame rate is 25, and here it is 5"),
    ],
)
def test_a_state_of_something_else_is_refused(state: Any, other: dict[str, Any], message: str) -> None:
    with engine().start(request()) as run:
        next(iter(run))
        made = dict(run.state())
    if isinstance(state, str):
        del made[state]
    elif isinstance(state, tuple):
        made["previous.frames"] = made["previous.frames"][..., : state[0], : state[1]]
    elif state is not None:
        made = state
    with pytest.raises(InputError, match=message):
        engine().generate(request(**other), resume=made)


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="a state is a mapping of tensors or a file of them, not bytes"):
        engine().start(request(), resume=b"x")  # type: ignore[arg-type]
    for path in (tmp_path / "state", tmp_path / "none"):
        with pytest.raises(InputError, match=r"cannot read the state .*/(state|none)"):
            engine().start(request(), resume=path)


def test_there_is_a_state_behind_chunks_only() -> None:
    run = engine().start(request())
    with pytest.raises(InputError, match="behind a chunk"):
        run.state()
    assert run.result().frames == 26
    with pytest.raises(InputError, match="behind a chunk"):
        run.state()


def test_a_value_that_no_file_can_hold_is_named() -> None:
    class Hoarder(PipelineUnit):
        """Hands over what is no tensor."""

        name = "hoarder"
        needs = ("previous.thing",)
        provides = ("thing",)

        @hookimpl
        def end_window(self, window: Window) -> None:
            window["thing"] = {"a": 1}

    with engine(Hoarder()).start(request()) as run:
        next(iter(run))
        with pytest.raises(InputError, match="the value 'thing' is dict and no tensor"):
            run.state()


# Requests, the public names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 2**63}, "the seed is 9223372036854775808; give a whole number from 0"),
        ({"seed": -5}, "the seed is -5"),
        ({"seed": "7"}, "the seed is '7'"),
        ({"seed": 1.5}, "the seed is 1.5"),
        ({"fps": 0}, "0 frames per second"),
        ({"fps": 29.97}, "29.97 frames per second; give a whole number"),
        ({"fps": True}, "True frames per second"),
        ({"seconds": 0}, "0 seconds"),
        ({"seconds": float("nan")}, "nan seconds"),
        ({"seconds": "3"}, "'3' seconds"),
        ({"height": 16}, "give both, or neither"),
        ({"height": 16.5, "width": 16}, "the height is 16.5"),
        ({"height": 16, "width": 0}, "the width is 0"),
        ({"inputs": ["a.png"]}, "mapping of names to values, not list"),
    ],
)
def test_a_request_that_cannot_be_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Request(**values)


def test_seeds_reach_far_and_may_be_drawn() -> None:
    maker = engine(frames=9)
    videos = []
    for seed in (2**60, 2**63 - 1, None, -1):
        asked = request(seed=seed)
        with maker.start(asked) as run:
            videos.append(shown(run))
            assert run.result().seed == asked.seed
        with maker.start(request(seed=asked.seed)) as run:
            assert np.array_equal(shown(run), videos[-1])
    assert not any(np.array_equal(videos[0], other) for other in videos[1:])


def test_the_public_names_are_there_and_torch_is_imported_late() -> None:
    for name in omniavatar.__all__:
        assert getattr(omniavatar, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'open_engin'"):
        _ = omniavatar.open_engin
    script = "import sys, omniavatar; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_models_are_loaded_when_the_caller_wants() -> None:
    models = fake_models()
    maker = fake_engine([scene(9), *denoising_units()], models=models)
    assert maker.networks == {}
    parts: list[str] = []
    maker.load(lambda doing, done, total: parts.append(doing))
    assert set(maker.networks) == {"vae", "dit"}
    assert parts == ["loading vae", "loading dit", "setting up"]
