"""A table that stays readable on a narrow terminal: where its columns do not fit, every row becomes a small block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

READABLE = 20
"""Columns that a text needs, if it is longer than that."""


class Listing(Table):
    """Rows under headings. Where the terminal is too narrow for that, one block a row: its first cell, then the others
    below, each behind the heading of its column.

    A table fits if no word is broken and no column of text is narrower than `READABLE`.
    """

    def __init__(self, *headings: str, numbers: Iterable[str] = ()) -> None:
        """numbers: headings of columns that come behind the others and whose cells stand on the right."""
        super().__init__(box=None, pad_edge=False, header_style="bold")
        for heading in headings:
            self.add_column(heading, overflow="fold")
        for heading in numbers:
            self.add_column(heading, overflow="fold", justify="right")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._fits(console, options):
            yield from super().__rich_console__(console, options)
        else:
            yield from self._blocks()

    def _fits(self, console: Console, options: ConsoleOptions) -> bool:
        """Whether the columns can be wide enough; those that can give nothing away are not narrowed from then on."""
        free = options.update(max_width=1_000_000)
        total = 2 * (len(self.columns) - 1)
        for column in self.columns:
            sizes = [Measurement.get(console, free, cell) for cell in (column.header, *column.cells)]
            widest = max(size.maximum for size in sizes)
            needed = max(*(size.minimum for size in sizes), min(READABLE, widest))
            column.no_wrap = needed == widest
            total += needed
        return total <= options.max_width

    def _blocks(self) -> Iterator[RenderableType]:
        headings = [str(column.header) for column in self.columns]
        for first, *others in zip(*(column.cells for column in self.columns), strict=True):
            yield Text(str(first), "bold")
            named = {heading: cell for heading, cell in zip(headings[1:], others, strict=True) if str(cell)}
            if named:
                yield Padding(pairs(named), (0, 0, 0, 2))


def pairs(named: Mapping[str, RenderableType]) -> Table:
    """Values behind their names, which are never cut off."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for _ in range(2):
        table.add_column(overflow="fold")
    for name, value in named.items():
        table.add_row(name, value)
    return table
