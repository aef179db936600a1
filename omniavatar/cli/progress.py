"""Progress of a run: an observer of the engine that counts, measures, and says how far the work is.

    watcher = Watcher(display_for(console, quiet=False))
    engine = Engine(plan, models, observers=[watcher])
    with watcher:
        watcher.load(engine)
        engine.generate(request)
    print(watcher.figures)

A terminal gets one line with a bar; a log file gets a plain line a chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Forward, Job, Step, Window


@dataclass
class Figures:
    """What one video took. Calls of the transformer whose blocks a cache skipped count in both numbers of calls."""

    windows: int = 0
    steps: int = 0
    transformer_calls: int = 0
    transformer_calls_skipped: int = 0
    prepare_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0
    generate_seconds: float = 0.0


@dataclass(frozen=True)
class Status:
    """How far the work is: `done` of `total` ticks. A milestone is worth a line in a log."""

    text: str
    done: int = 0
    total: int | None = None
    seconds_left: float | None = None
    milestone: bool = False

    @property
    def time_left(self) -> str:
        """The time left in words, or nothing."""
        return f"about {duration(self.seconds_left)} left" if self.seconds_left else ""


class Display:
    """Shows nothing: what `--quiet` wants, and the base of the others."""

    def show(self, status: Status) -> None:
        """Show this instead of the status before."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop showing."""


class Bar(Display):
    """One moving line on a terminal, gone at the end."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self.progress = Progress(
            *columns,
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            redirect_stdout=False,  # results go to stdout, not to the console of the bar
        )
        self.task = self.progress.add_task("starting", total=None, left="")

    def show(self, status: Status) -> None:
        self.progress.update(
            self.task, description=status.text, completed=status.done, total=status.total, left=status.time_left
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()


class Lines(Display):
    """A plain line at each milestone, and now and then between them, for logs and pipes."""

    EVERY_SECONDS = 30.0

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last = time.monotonic()

    def show(self, status: Status) -> None:
        now = time.monotonic()
        if status.milestone or now - self.last >= self.EVERY_SECONDS:
            self.last = now
            text = ", ".join(filter(None, (status.text, status.time_left)))
            with suppress(OSError):  # a full disk must not end the work either
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Progressing(Console):
    """Standard error, until nobody reads it any more: that must not end the work."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def on_broken_pipe(self) -> None:
        self.quiet = True


def display_for(console: Console, *, quiet: bool) -> Display:
    """The display that suits the place where the console's text goes."""
    if quiet:
        return Display()
    return Bar(console) if console.is_terminal else Lines(console)


class Watcher:
    """Observes an engine: `figures` are those of the video in work, `load_seconds` of its models.

    title: which video it is, in front of every status; empty if there is only one.
    """

    def __init__(self, display: Display) -> None:
        self.display = display
        self.title = ""
        self.figures = Figures()
        self.load_seconds = 0.0
        self._job_started = self._step_started = 0.0

    def __exit__(self, *exception: object) -> None:
        self.display.__exit__(*exception)

    def __enter__(self) -> Self:
        self.display.__enter__()
        return self

    def load(self, engine: Engine, note: Callable[[], None] = lambda: None) -> None:
        """Load the models that the plan's units need, one after another, and set the units up.

        note: called after each.
        """
        started = time.perf_counter()
        roles = list(dict.fromkeys(role for unit in engine.plan.units for role in unit.roles))
        for index, role in enumerate(roles):
            self.display.show(Status(f"loading {role}", index, len(roles)))
            engine.model(role)
            note()
        self.display.show(Status("setting up", len(roles), len(roles)))
        engine.set_up()
        self.load_seconds = time.perf_counter() - started
        self._show(f"loaded {', '.join(roles)} in {duration(self.load_seconds)}", done=1, total=1, milestone=True)

    @hookimpl(wrapper=True)
    def begin_job(self, job: Job) -> Iterator[None]:
        self.figures = Figures()
        self._job_started = time.perf_counter()
        self._show("reading the inputs")
        with self._measured("prepare_seconds"):
            return (yield)

    @hookimpl(wrapper=True)
    def begin_window(self, window: Window) -> Iterator[None]:
        self._show_window(window, 0, ", preparing")
        with self._measured("prepare_seconds"):
            return (yield)

    @hookimpl
    def before_step(self, step: Step) -> None:
        self._step_started = time.perf_counter()
        self._show_window(step.window, step.index, f", step {step.index + 1}/{len(step.window.steps)}")

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.figures.transformer_calls += 1
        self.figures.transformer_calls_skipped += 1

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.figures.transformer_calls_skipped -= 1

    @hookimpl
    def after_step(self, step: Step) -> None:
        wait_for(step.engine)
        self.figures.steps += 1
        self.figures.denoise_seconds += time.perf_counter() - self._step_started

    @hookimpl(wrapper=True)
    def end_window(self, window: Window) -> Iterator[None]:
        self._show_window(window, len(window.steps), ", decoding")
        with self._measured("decode_seconds"):
            result = yield
        self.figures.windows += 1
        self._show_window(window, len(window.steps) + 1, " done", milestone=True)
        return result

    @hookimpl(wrapper=True)
    def end_job(self, job: Job) -> Iterator[None]:
        self._show("writing the file", done=1, total=1)
        with self._measured("decode_seconds"):
            result = yield
        self.figures.generate_seconds = time.perf_counter() - self._job_started
        return result

    @contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes to a figure."""
        started = time.perf_counter()
        yield
        setattr(self.figures, name, getattr(self.figures, name) + time.perf_counter() - started)

    def _show_window(self, window: Window, done: int, doing: str, *, milestone: bool = False) -> None:
        """Show a window of which `done` ticks (a step each, and one for decoding) are over."""
        count, ticks = len(window.job.spans), len(window.steps) + 1
        self._show(
            f"chunk {window.index + 1}/{count}{doing}",
            done=window.index * ticks + done,
            total=count * ticks,
            seconds_left=self._seconds_left(window, done),
            milestone=milestone,
        )

    def _seconds_left(self, window: Window, done: int) -> float | None:
        """From the mean step, and the mean window besides its steps, so far."""
        figures, steps, count = self.figures, len(window.steps), len(window.job.spans)
        windows_left = count - figures.windows
        if not figures.steps or not windows_left:
            return None
        steps_left = max(0, (count - window.index) * steps - done)
        a_step = figures.denoise_seconds / figures.steps
        a_window = figures.decode_seconds / figures.windows if figures.windows else 0.0
        return steps_left * a_step + windows_left * a_window

    def _show(self, text: str, **status: Any) -> None:
        self.display.show(Status(f"{self.title}{text}", **status))


def wait_for(engine: Engine) -> None:
    """Wait until the GPU has done what it was told, so that times are those of the work and not of its order."""
    if engine.device.type == "cuda":
        import torch

        torch.cuda.synchronize(engine.device)


def duration(seconds: float) -> str:
    """4.2 -> "4.2 s", 125 -> "2:05", 7384 -> "2:03:04"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
