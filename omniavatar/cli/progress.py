"""Progress of a run: an observer of the engine that shows loading, windows and steps with the time left, and counts."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn

from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Forward, Job, Step, Window


@dataclass
class Figures:
    """What a run did: counts, and seconds by stage."""

    transformer_calls: int = 0
    calls_skipped: int = 0
    steps: int = 0
    windows: int = 0
    load_seconds: float = 0.0
    generate_seconds: float = 0.0
    denoise_seconds: float = 0.0
    _started: float = field(default=0.0, repr=False)


class Watcher:
    """Counts what the engine does and, if there is a console, shows it."""

    def __init__(self, console: Console | None) -> None:
        self.figures = Figures()
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(quiet=True),
            transient=True,
        )
        self.shown = console is not None
        self._steps: Any = None

    def __enter__(self) -> Watcher:
        self.display.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.display.__exit__(*exception)

    @property
    def display(self) -> AbstractContextManager[Any]:
        return self.progress if self.shown else nullcontext()

    def load(self, engine: Engine) -> None:
        """Load the models of the plan, one after another."""
        started = time.perf_counter()
        task = self.progress.add_task("loading", total=len(engine.roles) + 1)
        for role in engine.roles:
            self.progress.update(task, description=f"loading {role}")
            if role != "lora":
                engine.model(role)
            self.progress.advance(task)
        engine.set_up()
        self.progress.remove_task(task)
        self.figures.load_seconds += time.perf_counter() - started

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self.figures._started = time.perf_counter()
        self._steps = self.progress.add_task("preparing", total=None)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        count = len(window.job.spans)
        total = len(window.steps) * count
        self.progress.update(
            self._steps,
            description=f"chunk {window.index + 1}/{count}",
            total=total,
            completed=len(window.steps) * window.index,
        )

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.figures.transformer_calls += 1

    @hookimpl
    def before_step(self, step: Step) -> None:
        self._step_started = time.perf_counter()

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.figures.steps += 1
        self.figures.denoise_seconds += time.perf_counter() - self._step_started
        self.progress.advance(self._steps)

    @hookimpl
    def end_window(self, window: Window) -> None:
        self.figures.windows += 1
        self.progress.update(self._steps, description=f"chunk {window.index + 1}/{len(window.job.spans)}, decoding")

    @hookimpl
    def end_job(self, job: Job) -> None:
        self.progress.remove_task(self._steps)
        self.figures.generate_seconds += time.perf_counter() - self.figures._started
