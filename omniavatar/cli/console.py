"""What a person reads: results and tables on stdout, one line a message on stderr with the program's name in front.

show(table)        # what a command was asked to print; if it cannot be printed, the command has failed
tell(line)         # what became of work that is done, which stays done if the line cannot be printed
say(message)       # a message
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from omniavatar.plugins import Plugins

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
"""An option of every command that lists something."""
UNLIMITED = 100_000
"""Columns of what is no terminal: every row of a table stays one line, so that grep finds it."""


def show(*content: RenderableType, markup: bool = False) -> None:
    """Print tables, trees and lines on stdout; of plain text, nothing is taken for markup.

    Raises OSError, which `run_cli` explains, if that is impossible.
    """
    click.echo(rendered(content, markup=markup), nl=False)


def show_json(content: Any) -> None:
    """Print JSON on stdout. Raises as `show` does."""
    click.echo(json.dumps(content, indent=2))


def tell(*content: RenderableType, markup: bool = False) -> None:
    """Print what became of work, as `show` does. If that is impossible, say so once; the work counts all the same."""
    try:
        show(*content, markup=markup)
    except (OSError, ValueError) as error:
        if not isinstance(error, BrokenPipeError):
            say(f"{unprintable(error)}; the work is not affected")
        silence(sys.stdout)


def rendered(content: tuple[RenderableType, ...], *, markup: bool) -> str:
    """Text for stdout: wrapped for a terminal; anywhere else a line for each row, without spaces at its end."""
    from rich.console import Console

    page = Page()
    console = Console(file=page, highlight=False, markup=markup, emoji=False)
    if not console.is_terminal:
        console.width = UNLIMITED
    for one in content:
        console.print(one, soft_wrap=isinstance(one, str))
    text = page.getvalue()
    return text if console.is_terminal else "".join(f"{line.rstrip()}\n" for line in text.split("\n")[:-1])


class Page(io.StringIO):
    """Text that will go to stdout, rendered as for that."""

    encoding = property(lambda self: getattr(sys.stdout, "encoding", None))

    def isatty(self) -> bool:
        return sys.stdout is not None and sys.stdout.isatty()


def table_of(*columns: str, numbers: Iterable[str] = ()) -> Table:
    """An empty table whose cells are never cut off, and which a narrow terminal shows as a block for each row.

    numbers: further columns, whose cells stand on the right.
    """
    from omniavatar.cli.listing import Listing

    return Listing(*columns, numbers=numbers)


def make_lenient(stream: TextIO | None) -> None:
    """Let a stream show characters that it has no bytes for as `\\u0432`, rather than raise an error."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace" and not can_print_all(stream):
        stream.reconfigure(errors="backslashreplace")


def can_print_all(stream: TextIO) -> bool:
    """Whether any name of a file can be printed, also one that is no valid text."""
    return stream.errors == "surrogateescape" and stream.encoding.lower().startswith("utf")


def is_unprinted(error: BaseException) -> bool:
    """Whether an error says that stdout took nothing more."""
    came_from = (frame.f_code for frame, _ in walk_tb(error.__traceback__))
    return isinstance(error, OSError | ValueError) and click.echo.__code__ in came_from


def unprintable(error: BaseException) -> str:
    """What to say of text that could not be printed."""
    return f"cannot print: {getattr(error, 'strerror', None) or error}"


def silence(stream: TextIO | None) -> None:
    """Let a stream lead nowhere from now on, so that neither further prints nor flushing at exit fail."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)


def say(message: str, error: BaseException | None = None) -> None:
    """Print a message on stderr, and what was noted on the error while it came up, if anybody can still read it."""
    try:
        click.echo("omni: " + "; ".join([message, *getattr(error, "__notes__", ())]), err=True)
    except (OSError, ValueError):
        silence(sys.stderr)


@contextmanager
def saying_faults(plugins: Plugins) -> Iterator[None]:
    """Say which faults of plugins are found inside a with-block, a line for each."""
    known = len(plugins.failures)
    yield
    for failure in plugins.failures[known:]:
        say(f"plugin '{failure.plugin}': {failure.reason}")


class SayingHandler(logging.Handler):
    """Log records as messages of this program, each message once."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.said:
            self.said.add(message)
            say(message)


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
