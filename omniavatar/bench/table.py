"""A record as tables on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.markup import escape
from rich.table import Table

from omniavatar.bench.record import Combination, Record, Spread

Cell = Callable[[Combination], str]
LONGEST = 300
"""Letters of a reason that are shown; the JSON has all."""


def tables(record: Record) -> Iterator[Table]:
    """Seconds, work and memory, quality, and what was not measured: narrow ones, so that a terminal holds them."""
    measured = [one for one in record.combinations if one.video is not None]
    first = record.combinations[0].name
    for heading, group in groups(record).items():
        used = {name: cell for name, cell in group.items() if any(map(cell, measured))}
        if used:
            table = _table(heading)
            for name in used:
                table.add_column(name, justify="right", no_wrap=True)
            for one in measured:
                table.add_row(escape(short(one.name, first)), *(cell(one) for cell in used.values()))
            yield table
    others = [item for item in enumerate(record.combinations, start=1) if item[1].status != "measured"]
    if others:
        table = _table("incomplete")
        table.add_column("why", overflow="fold")
        for number, one in others:
            colour = {"refused": "yellow", "failed": "bold red"}.get(one.status, "dim")
            status, colon, reason = why(number, one).partition(":")
            table.add_row(escape(one.name), f"[{colour}]{status}[/]{colon}{escape(reason)}")
        yield table


def short(name: str, first: str) -> str:
    """The name of a combination without that of the first, where it goes on from it: "+teacache"."""
    rest = name.removeprefix(first)
    return rest if rest[:1] in ("+", "-") and rest != name else name


def _table(heading: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column(heading, overflow="fold", min_width=20)
    return table


def why(number: int, one: Combination) -> str:
    """Why a combination has no figures, or not all. Without those of the first, the others have less to show."""
    reason = one.reason or ""
    reason = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}..."
    lost = "no speed-up and no likeness of the others" if number == 1 and one.video is None else ""
    return ": ".join(filter(None, (one.status, "; ".join(filter(None, (reason, lost))))))


def seconds(spread: Spread) -> str:
    """Median and, of several values, half the interquartile range."""
    digits = 0 if spread.median >= 100 else 1 if spread.median >= 10 else 2 if spread.median >= 1 else 3
    scatter = f" ±{spread.iqr / 2:.{digits}f}" if len(spread.values) > 1 else ""
    return f"{spread.median:.{digits}f}{scatter}"


def _time(name: str) -> Cell:
    return lambda one: seconds(getattr(one.times, f"{name}_seconds")) if one.times else ""


def _blocks(one: Combination) -> str:
    return f"{one.calls.blocks_run / one.calls.blocks:.0%}" if one.calls and one.calls.blocks else ""


def _memory(name: str) -> Cell:
    def cell(one: Combination) -> str:
        peak = getattr(one.memory, f"peak_{name}_mib") if one.memory else None
        return "" if peak is None else f"{peak:,.0f}"

    return cell


def _quality(name: str, form: str) -> Cell:
    def cell(one: Combination) -> str:
        if one.quality is None:
            return ""
        if one.quality.identical and name != "latent_error":
            return "same"
        spread = getattr(one.quality, name)
        return "" if spread is None else format(spread.median, form)

    return cell


def groups(record: Record) -> dict[str, dict[str, Cell]]:
    """The columns by heading: those of every record, and a group for the metrics of each package."""
    found = {heading: dict(cells) for heading, cells in GROUPS.items()}
    for one in record.combinations:
        for metric in one.metrics:
            found.setdefault(metric.package, {})[metric.heading] = _metric(metric.package, metric.name)
    return found


def _metric(package: str, name: str) -> Cell:
    def cell(one: Combination) -> str:
        found = (metric for metric in one.metrics if (metric.package, metric.name) == (package, name))
        return next((f"{metric.values.median:.3f}" for metric in found), "")

    return cell


GROUPS: dict[str, dict[str, Cell]] = {
    "seconds": {
        "total": _time("total"),
        "speed-up": lambda one: "" if one.speed_up is None else f"{one.speed_up:.2f}x",
        "window": _time("window"),
        "step": _time("step"),
    },
    "work and memory": {
        "load s": lambda one: f"{one.times.load_seconds:.2f}" if one.times else "",
        "first s": lambda one: f"{one.times.first_seconds:.2f}" if one.times and one.times.first_seconds else "",
        "calls": lambda one: str(one.calls.made) if one.calls else "",
        "skipped": lambda one: str(one.calls.skipped) if one.calls else "",
        "blocks": _blocks,
        "GPU MiB": _memory("device"),
        "host MiB": _memory("host"),
    },
    "quality": {
        "PSNR dB": _quality("psnr_db", ".1f"),
        "SSIM": _quality("ssim", ".4f"),
        "latent error": _quality("latent_error", ".2g"),
    },
}
