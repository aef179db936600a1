"""Progress of a run: an observer that counts, measures, and says how far the work is.

    def show(status):
        print(f"{status.done}/{status.total} {status.text}, {status.time_left}")

    engine.generate(request, observers=[Progress(show)])

Nothing here waits for a GPU: marks in its stream are read when it has passed them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch

    from omniavatar.engine.scopes import Forward, Job, Step, Window


@dataclass
class Timings:
    """What one video took, in seconds. Calls of the transformer whose blocks a cache skipped count in both numbers of
    calls. `first_frame_seconds` is from the beginning to the first frame that can be shown."""

    windows: int = 0
    steps: int = 0
    transformer_calls: int = 0
    transformer_calls_skipped: int = 0
    load_seconds: float = 0.0
    prepare_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0
    generate_seconds: float = 0.0
    first_frame_seconds: float | None = None


@dataclass(frozen=True)
class Status:
    """How far the work is: `done` of `total` ticks, a step each and one for decoding each chunk.

    phase: loading, preparing, denoising, decoding, writing. chunk: which of `chunks`, from 0. milestone: worth a line
    in a log. seconds_done: of the video. seconds_left: of work, None while it is not known.
    """

    text: str
    done: int = 0
    total: int | None = None
    seconds_left: float | None = None
    milestone: bool = False
    phase: str = ""
    chunk: int | None = None
    chunks: int | None = None
    seconds_done: float = 0.0

    @property
    def time_left(self) -> str:
        """The time left in words, or nothing."""
        return f"about {duration(self.seconds_left)} left" if self.seconds_left else ""


class Mark:
    """A moment of the work on a device."""

    def __init__(self, device: torch.device) -> None:
        self.time = time.perf_counter()
        self.event: Any = None
        if device.type == "cuda":
            import torch

            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record(torch.cuda.current_stream(device))

    @property
    def is_past(self) -> bool:
        """Whether the device has come so far."""
        return self.event is None or bool(self.event.query())

    def since(self, earlier: Mark) -> float:
        """Seconds between two moments; waits until the device has come to both."""
        if self.event is None:
            return self.time - earlier.time
        self.event.synchronize()
        return float(earlier.event.elapsed_time(self.event)) / 1000


class Progress:
    """Observes a run, or all runs of an engine one after another. `timings` are those of the video in work.

    show: called with a Status at every step and phase. title: in front of every text, such as "video 2/5, ".
    """

    def __init__(self, show: Callable[[Status], None] | None = None) -> None:
        self.show = show
        self.title = ""
        self.timings = Timings()
        self._started = time.perf_counter()
        self._load_started: float | None = None
        self._marks: dict[str, Mark] = {}
        self._step_marks: list[Mark] = []

    def loading(self, doing: str, done: int, total: int) -> None:
        """Told by `Engine.load` before each part."""
        if done == 0 or self._load_started is None:
            self._load_started = time.perf_counter()
        self._say(doing, done=done, total=total, phase="loading")

    @hookimpl(wrapper=True, tryfirst=True)
    def begin_job(self, job: Job) -> Iterator[None]:
        self._started = time.perf_counter()
        self.timings = Timings(load_seconds=self._started - (self._load_started or self._started))
        self._load_started = None
        self._marks = {"job": Mark(job.engine.device)}
        self._say("reading the inputs", phase="preparing")
        result = yield
        self._marks["begun"] = Mark(job.engine.device)
        return result

    @hookimpl(wrapper=True, tryfirst=True)
    def begin_window(self, window: Window) -> Iterator[None]:
        self._marks["window"] = Mark(window.engine.device)
        self._step_marks = []
        self._show_window(window, 0, ", preparing", phase="preparing")
        return (yield)

    @hookimpl(tryfirst=True)
    def before_step(self, step: Step) -> None:
        if step.is_first and not step.evaluation:
            self._step_marks = [Mark(step.engine.device)]
        doing = f", step {step.index + 1}/{len(step.window.steps)}"
        self._show_window(step.window, step.index, doing, phase="denoising")

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.timings.transformer_calls += 1
        self.timings.transformer_calls_skipped += 1

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.timings.transformer_calls_skipped -= 1

    @hookimpl(trylast=True)
    def after_step(self, step: Step) -> None:
        self.timings.steps += 1
        self._step_marks.append(Mark(step.engine.device))
        if step.is_last:
            self._show_window(step.window, len(step.window.steps), ", decoding", phase="decoding")

    @hookimpl
    def output_frames(self, window: Window) -> None:
        if self.timings.first_frame_seconds is None:
            self.timings.first_frame_seconds = time.perf_counter() - self._started

    @hookimpl(wrapper=True, tryfirst=True)
    def end_window(self, window: Window) -> Iterator[None]:
        result = yield
        self._count_window(window)
        self._show_window(window, len(window.steps) + 1, " done", phase="decoding", milestone=True)
        return result

    @hookimpl(wrapper=True, tryfirst=True)
    def end_job(self, job: Job) -> Iterator[None]:
        self._say("writing the file", done=1, total=1, phase="writing", seconds_done=job.length / job.fps)
        begin = time.perf_counter()
        result = yield
        now = time.perf_counter()
        self.timings.decode_seconds += now - begin
        self.timings.generate_seconds = now - self._started
        return result

    def _count_window(self, window: Window) -> None:
        """Read the marks of a window; its frames are on the host, so the device has passed them all but the last."""
        timings, end = self.timings, Mark(window.engine.device)
        begin = self._marks["window"]
        if not timings.windows:
            timings.prepare_seconds += self._marks["begun"].since(self._marks["job"]) if "begun" in self._marks else 0.0
        steps = self._step_marks or [end]
        timings.prepare_seconds += steps[0].since(begin)
        timings.denoise_seconds += steps[-1].since(steps[0])
        timings.decode_seconds += end.since(steps[-1])
        timings.windows += 1
        self._step_marks = []

    def _show_window(self, window: Window, done: int, doing: str, *, phase: str, milestone: bool = False) -> None:
        """Show a window of which `done` ticks (a step each, and one for decoding) are over."""
        if self.show is None:
            return
        job = window.job
        first, count, ticks = job.first, len(job.spans), len(window.steps) + 1
        is_done = done == ticks
        self._say(
            f"chunk {window.index + 1}/{count}{doing}",
            done=(window.index - first) * ticks + done,
            total=(count - first) * ticks,
            seconds_left=self._seconds_left(window, done),
            milestone=milestone,
            phase=phase,
            chunk=window.index,
            chunks=count,
            seconds_done=(window.span.keep_stop if is_done else window.span.keep_start) / job.fps,
        )

    def _seconds_left(self, window: Window, done: int) -> float | None:
        """From the mean step, and the mean window besides its steps, so far."""
        timings, steps = self.timings, len(window.steps)
        windows_left = len(window.job.spans) - window.job.first - timings.windows
        past = [mark for mark in self._step_marks if mark.is_past]
        seconds, count = timings.denoise_seconds, timings.windows * steps
        if len(past) > 1:
            seconds, count = seconds + past[-1].since(past[0]), count + len(past) - 1
        if not count or not windows_left:
            return None
        steps_left = max(0, (len(window.job.spans) - window.index) * steps - done)
        a_window = timings.decode_seconds / timings.windows if timings.windows else 0.0
        return steps_left * seconds / count + windows_left * a_window

    def _say(self, text: str, **status: Any) -> None:
        if self.show is not None:
            self.show(Status(f"{self.title}{text}", **status))


def duration(seconds: float) -> str:
    """4.2 -> "4.2 s", 125 -> "2:05", 7384 -> "2:03:04"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
