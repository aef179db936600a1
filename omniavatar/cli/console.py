"""What goes to stderr besides progress: one line a message, with the program's name in front."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from omniavatar.plugins import Plugins


def say(message: str, error: BaseException | None = None) -> None:
    """Print a message, and what was noted on the error while it came up, if anybody still reads it."""
    with suppress(BrokenPipeError):
        click.echo("omni: " + "; ".join([message, *getattr(error, "__notes__", ())]), err=True)


@contextmanager
def saying_faults(plugins: Plugins) -> Iterator[None]:
    """Say which faults of plugins are found inside a with-block, a line for each."""
    known = len(plugins.failures)
    yield
    for failure in plugins.failures[known:]:
        say(f"plugin '{failure.plugin}': {failure.reason}")


class SayingHandler(logging.Handler):
    """Log records as messages of this program."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextmanager
def logging_to_stderr(verbosity: int) -> Iterator[None]:
    """Show errors at -1, warnings at 0, what is going on at 1, everything at 2."""
    levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
    root, handler = logging.getLogger(), SayingHandler()
    before = root.level
    root.addHandler(handler)
    root.setLevel(levels.get(verbosity, logging.DEBUG))
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
