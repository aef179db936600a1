"""Plots as SVG elements to stand in a page: no scripts, no fonts or files of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#882255", "#999933")
OTHERS = "#bbbbbb"
REST = "all others"
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 84, 20, 34, 46
_LABEL = 14
"""Points nearer to each other share a label."""


@dataclass(frozen=True)
class Point:
    """One combination in the plane: smaller x is better, larger y is better. low, high: quartiles of x."""

    label: str
    number: int
    x: float
    y: float
    low: float
    high: float


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in one direction without losing in the other, from left to right."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


@dataclass(frozen=True)
class Axis:
    """Numbers from `low` to `high` on pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, stop: float, least: float) -> Axis:
        """With some air on both sides; `least` is the shortest, so that differences that are nothing look like it."""
        low, high = min(values), max(values)
        air = max(0.08 * (high - low), (least - (high - low)) / 2)
        return cls(low - air, high + air, start, stop)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, count: int = 5) -> dict[float, str]:
        """Round numbers, about `count`, with the digits that tell them apart."""
        raw = (self.high - self.low) / count
        power = 10 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        marks = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return {index * step: f"{index * step:.{digits}f}" for index in marks}


def scatter(points: Sequence[Point], title: str, x_label: str, y_label: str) -> str:
    """Points with their numbers, quartiles of x as lines, and the Pareto front as steps."""
    height = 330
    across = [value for point in points for value in (point.low, point.high, point.x)]
    x = Axis.around(across, _LEFT, _WIDTH - _RIGHT, least=0.05 * max(across))
    y = Axis.around([point.y for point in points], height - _BOTTOM, _TOP, least=0.01)
    front = pareto(points)
    parts = [_text(_LEFT, 18, title, "title"), *_frame(x, y, height, x_label, y_label)]
    corners = [f"H{x(point.x):.1f} V{y(point.y):.1f}" for point in front[1:]]
    line = " ".join([f"M{x(front[0].x):.1f} {y(front[0].y):.1f}", *corners])
    parts.append(f'<path d="{line}" class="front"/>')
    labels: dict[tuple[float, float], list[str]] = {}
    for point in points:
        place, up, colour = x(point.x), y(point.y), colour_of(point.number)
        near = (at for at in labels if abs(at[0] - place) < _LABEL and abs(at[1] - up) < _LABEL)
        labels.setdefault(next(near, (place, up)), []).append(str(point.number))
        parts.append(
            f"<g><title>{escape(point.label)}: {point.x:.4g}, {point.y:.4g}</title>"
            f'<line x1="{x(point.low):.1f}" x2="{x(point.high):.1f}" y1="{up:.1f}" y2="{up:.1f}" stroke="{colour}"/>'
            f'<circle cx="{place:.1f}" cy="{up:.1f}" r="{6 if point in front else 4}" fill="{colour}"/></g>'
        )
    parts += [_text(place + 9, up - 7, ", ".join(numbers), "mark") for (place, up), numbers in labels.items()]
    return _svg(_WIDTH, height, title, parts)


def _frame(x: Axis, y: Axis, height: int, x_label: str, y_label: str) -> list[str]:
    """Grid, numbers and names of the axes."""
    parts = []
    for value, number in x.ticks().items():
        parts.append(_line(x(value), x(value), y.start, y.stop))
        parts.append(_text(x(value), y.start + 16, number, "tick middle"))
    for value, number in y.ticks().items():
        parts.append(_line(x.start, x.stop, y(value), y(value)))
        parts.append(_text(x.start - 6, y(value) + 4, number, "tick end"))
    parts.append(_text((x.start + x.stop) / 2, height - 8, x_label, "middle"))
    centre = (y.start + y.stop) / 2
    parts.append(f'<text transform="translate(16 {centre:.0f}) rotate(-90)" class="middle">{escape(y_label)}</text>')
    return parts


def bars(rows: Mapping[str, Mapping[str, float]], title: str, unit: str) -> str:
    """A stacked bar a row, such as "3 default+teacache": its parts by name, in the same colours everywhere."""
    names = shared_parts(rows)
    left, width, pitch, columns = 34, 2 * _WIDTH, 30, 4
    longest = max((sum(parts.values()) for parts in rows.values()), default=0) or 1
    x = Axis(0, longest * 1.02, left, width - _RIGHT)
    bottom = _TOP + pitch * len(rows)
    drawn = [_text(left, 18, title, "title")]
    for value, number in x.ticks(8).items():
        drawn += [
            _line(x(value), x(value), _TOP, bottom),
            _text(x(value), bottom + 16, f"{number} {unit}", "tick middle"),
        ]
    for index, (row, parts) in enumerate(rows.items()):
        top = _TOP + pitch * index + 5
        drawn.append(_text(left - 8, top + 15, row.partition(" ")[0], "mark end"))
        drawn += _stack(row, folded(parts, names), names, x, top, unit)
    for index, name in enumerate(names):
        across, down = left + (index % columns) * (width - left) / columns, bottom + 34 + 20 * (index // columns)
        colour = _part_colour(name, names)
        drawn.append(f'<rect x="{across:.0f}" y="{down:.0f}" width="12" height="12" fill="{colour}"/>')
        drawn.append(_text(across + 18, down + 11, name))
    return _svg(width, bottom + 46 + 20 * math.ceil(len(names) / columns), title, drawn)


def _stack(row: str, parts: Mapping[str, float], names: Sequence[str], x: Axis, top: float, unit: str) -> list[str]:
    """The parts of one bar."""
    drawn, done = [], 0.0
    for name, value in parts.items():
        place = f'x="{x(done):.1f}" y="{top}" width="{max(0.3, x(done + value) - x(done)):.1f}" height="20"'
        text = f"<title>{escape(row)}, {escape(name)}: {value:.4g} {unit}</title>"
        drawn.append(f'<rect {place} fill="{_part_colour(name, names)}">{text}</rect>')
        done += value
    return drawn


def shared_parts(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The names of parts, the largest first; those beyond the colours there are go with REST."""
    totals: dict[str, float] = {}
    for parts in rows.values():
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + value
    ranked = sorted(totals, key=lambda name: -totals[name])
    return ranked if len(ranked) <= len(COLOURS) else [*ranked[: len(COLOURS)], REST]


def folded(parts: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Parts by these names, in their order, what has none under REST; without empty ones."""
    rest = sum(value for name, value in parts.items() if name not in names)
    return {name: value for name in names if (value := rest if name == REST else parts.get(name, 0.0)) > 0}


def colour_of(number: int) -> str:
    """Of combination `number`, from 1."""
    return COLOURS[(number - 1) % len(COLOURS)]


def _part_colour(name: str, names: Sequence[str]) -> str:
    return OTHERS if name == REST else COLOURS[names.index(name)]


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    inner = "\n".join(parts)
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">\n{inner}\n</svg>'


def _line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" class="grid"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{mark}>{escape(text)}</text>'
