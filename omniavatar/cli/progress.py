"""Progress on show: where the statuses of `omniavatar.engine.progress` go.

    watcher = Watcher(display_for(console, quiet=False))
    with watcher:
        watcher.load(engine)
        engine.generate(request, observers=[watcher])
    print(watcher.timings)

A terminal gets one line with a bar; a log file gets a plain line a chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from omniavatar.engine.progress import Progress, Status, duration

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine


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
        self.progress = RichProgress(
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


class Watcher(Progress):
    """Observes an engine and shows how far it is. title: which video it is, in front of every status."""

    def __init__(self, display: Display) -> None:
        super().__init__(display.show)
        self.display = display
        self.load_seconds = 0.0

    def __exit__(self, *exception: object) -> None:
        self.display.__exit__(*exception)

    def __enter__(self) -> Self:
        self.display.__enter__()
        return self

    def load(self, engine: Engine, note: Callable[[], None] = lambda: None) -> None:
        """Load the models that the plan's units need, and set the units up. note: called before each part."""

        def show(doing: str, done: int, total: int) -> None:
            note()
            self.loading(doing, done, total)

        started = time.perf_counter()
        engine.load(show)
        self.load_seconds = time.perf_counter() - started
        roles = dict.fromkeys(role for unit in engine.plan.units for role in unit.roles)
        text = f"{self.title}loaded {', '.join(roles)} in {duration(self.load_seconds)}"
        self.display.show(Status(text, done=1, total=1, milestone=True))
