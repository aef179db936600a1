"""`docs/compatibility.md`: the table of what goes with what, and why the rest does not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.compatibility.cases import UNITS, Pair, catalog, needs_ranks
from tests.compatibility.outcomes import REFUSED, Outcome
from tests.compatibility.table import Table

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
WORKS_MARK, EXACT_MARK = "✓", "="
TEXT = f"""\
# What goes with what

Written by `python -m tests.compatibility`; a test finds everything anew and compares. Do not edit it by hand.

Every two units, built-in and of the packages in `plugins/`, make a small video in one plan, by networks with random
weights.

- **{WORKS_MARK}** works: the video has its length and size and finite values, and comes out the same when it is made
  again and when the two are written in the other order. Each of the two changes it, and leaves no trace when it is
  switched off.
- **{EXACT_MARK}** works, and the one that changes what a video costs does not change the video beyond rounding (1e-5 of
  the largest value). Units for several ranks are compared, in a world of two, with one rank alone.
- **a number**: the plan refuses them, for the reason of that number below the table.

A unit that brings a transformer, a picture or windows of its own stands in the place of others. So each pair is tried
in the plan that either of the two is made for, without what stands in the way of the other.
"""


def render(table: Table) -> str:
    """The page."""
    reasons = list(dict.fromkeys(outcome.reason for outcome in table.pairs.values() if outcome.verdict == REFUSED))
    parts = [TEXT, "## Units", matrix(table, reasons), "## Why not", refusals(table, reasons), "## Presets"]
    return "\n\n".join(part.strip() for part in [*parts, presets(table)]) + "\n"


def matrix(table: Table, reasons: list[str]) -> str:
    """A row and a column for every unit; columns have numbers, which stand beside the names of the rows."""
    names = list(UNITS)
    rows = [[f"{index} `{name}`", *cells(name, table, reasons)] for index, name in enumerate(names, 1)]
    return grid(["", *(str(index) for index in range(1, len(names) + 1))], rows, centred=True)


def cells(unit: str, table: Table, reasons: list[str]) -> Iterable[str]:
    """The marks of one unit with every other."""
    for other in UNITS:
        pair = (unit, other) if (unit, other) in table.pairs else (other, unit)
        yield "" if unit == other else mark(pair, table.pairs[pair], reasons)


def mark(pair: Pair, outcome: Outcome, reasons: list[str]) -> str:
    if outcome.verdict == REFUSED:
        return str(reasons.index(outcome.reason) + 1)
    is_exact = needs_ranks(pair) or any(catalog().units[unit].exact for unit in pair)
    return EXACT_MARK if is_exact else WORKS_MARK


def refusals(table: Table, reasons: list[str]) -> str:
    """Each reason, and the pairs that it is given for."""
    parts = []
    for number, reason in enumerate(reasons, 1):
        pairs = [pair for pair, outcome in table.pairs.items() if outcome.reason == reason]
        named = ", ".join(" + ".join(f"`{unit}`" for unit in pair) for pair in pairs)
        parts.append(f"{number}. {named}:  \n   {reason}")
    return "\n".join(parts)


def presets(table: Table) -> str:
    """All presets; the table holds only such that work."""
    rows = [[f"`{name}`", f"`{catalog().presets[name]}`"] for name in table.presets]
    return "Each makes a video with all inputs that its units take.\n\n" + grid(["preset", "is"], rows)


def grid(head: list[str], rows: list[list[str]], *, centred: bool = False) -> str:
    """A Markdown table."""
    rule = ["---", *(":-:" if centred else "---" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
