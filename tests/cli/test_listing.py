"""Tables at any width of a terminal."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.text import Text

from omniavatar.cli.console import table_of

ROWS = (
    ("image-to-video", "omniavatar-i2v", "A picture that the video starts from, and maybe one that it ends with.", ""),
    ("teacache", "omniavatar", "Cache: reuse what the blocks added in an earlier step.", "dit"),
)


def printed(width: int) -> list[str]:
    table = table_of("unit", "package", "what it does", "models")
    for name, package, what, models in ROWS:
        table.add_row(name, Text(package), what, models)
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_wide_table_has_a_line_for_each_row() -> None:
    headings, *lines = printed(140)
    assert headings.split() == ["unit", "package", "what", "it", "does", "models"]
    assert [line.split()[0] for line in lines] == ["image-to-video", "teacache"]


def test_a_narrow_table_is_wrapped_between_words() -> None:
    lines = printed(64)
    assert lines[0].startswith("unit")
    text = " ".join(lines)
    assert all(name in text for row in ROWS for name in row[:2])


@pytest.mark.parametrize("width", [30, 40, 55])
def test_where_columns_do_not_fit_every_row_is_a_block_that_has_all_cells_but_empty_ones(width: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    first, second = lines.index("image-to-video"), lines.index("teacache")
    assert [line.split()[0] for line in lines[first + 1 :] if line.startswith("  ") and line[2] != " "] == [
        *("package", "what"),
        *("package", "what", "models"),
    ]
    assert lines[first + 1] == "  package       omniavatar-i2v"
    whole = " ".join(" ".join(lines[first + 2 : second]).split())
    assert whole == f"what it does {ROWS[0][2]}"
