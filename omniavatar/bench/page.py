"""A record as one HTML page that needs nothing else: plots are SVG in it, pictures data URIs; there is no script."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from string import Template

import numpy as np
from PIL import Image

from omniavatar.bench.plots import Point, bars, colour_of, scatter
from omniavatar.bench.record import Combination, Record
from omniavatar.bench.table import groups, why

ENGINE = "engine, between units"
LARGEST = 160
"""Pixels of a shown frame's longer side."""
AMPLIFIED = 4
SECONDS = "seconds for a video (median; line: quartiles)"

Value = Callable[[Combination], float | None]


def page(record: Record, frames: Mapping[str, np.ndarray], differences: Sequence[str] = ()) -> str:
    """The whole page. frames: some pictures (n h w 3) uint8 of combinations' first videos, by name.

    differences: what a comparison with an earlier record has found; shown first.
    """
    parts = [
        _summary(record),
        _list("Worse than before", differences),
        _table(record),
        *_scatters(record),
        _breakdown(record),
        _strips(record, frames),
        _settings(record),
    ]
    return PAGE.substitute(title=escape(record.title), body="\n".join(filter(None, parts)))


def _summary(record: Record) -> str:
    machine, asked = record.machine, record.asked
    facts = [machine.device, f"torch {machine.torch}", asked.dtype, f"commit {machine.commit or 'unknown'}"]
    facts += [f"seeds: {len(asked.seeds)}, repeats: {asked.repeats}", record.created]
    ended = "<p class='bad'>Interrupted: not all was measured.</p>" if record.interrupted else ""
    return f"<p>{escape(' · '.join(facts))}</p>{ended}"


def _list(title: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li class='bad'>{escape(line)}</li>" for line in lines)
    return f"<h2>{title}</h2><ul>{items}</ul>" if lines else ""


def _table(record: Record) -> str:
    """The tables of the terminal in one, with all reasons."""
    cells = {(heading, name): cell for heading, group in groups(record).items() for name, cell in group.items()}
    used = {key: cell for key, cell in cells.items() if any(map(cell, record.combinations))}
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", "combination", *(name for _, name in used)))
    spans = Counter(heading for heading, _ in used)
    headings = "".join(
        f"<th colspan='{count}' class='group'>{escape(heading)}</th>" for heading, count in spans.items()
    )
    rows = [_row(number, one, list(used.values())) for number, one in enumerate(record.combinations, start=1)]
    legend = (
        "Seconds: median ± half the interquartile range; load and first video: once. Blocks: those that ran, of all "
        "that the calls have. Quality: against combination 1. Under the name of a package: what that package measures."
    )
    metrics = {one.heading: one.description for combination in record.combinations for one in combination.metrics}
    legend += "".join(f" {heading}: {description}." for heading, description in metrics.items())
    body = f"<tr><th colspan='2'></th>{headings}</tr><tr>{head}</tr>{''.join(rows)}"
    return f"<div class='wide'><table>{body}</table></div><p class='note'>{escape(legend)}</p>"


def _row(number: int, one: Combination, cells: Sequence[Callable[[Combination], str]]) -> str:
    """One combination, with its figures or the reason why there are none."""
    name = escape(one.name)
    if one.video is None:
        shown = f"<td class='bad left' colspan='{max(1, len(cells))}'>{escape(why(number, one))}</td>"
    else:
        if one.status != "measured":
            name += f" <span class='bad'>({escape(why(number, one))})</span>"
        shown = "".join(f"<td>{escape(cell(one))}</td>" for cell in cells)
    return f"<tr><td><b style='color:{colour_of(number)}'>{number}</b></td><td class='left'>{name}</td>{shown}</tr>"


def _scatters(record: Record) -> list[str]:
    """Speed against each measure of quality that several combinations have."""
    plots = []
    for title, label, value, of_first in (*MEASURES, *_measures(record)):
        points = []
        for number, one in enumerate(record.combinations, start=1):
            y = of_first if number == 1 and of_first is not None else value(one)
            if one.times is not None and (total := one.times.total_seconds) and y is not None:
                points.append(Point(one.name, number, total.median, y, total.low, total.high))
        if len(points) > 1:
            plots.append(scatter(points, f"Speed against {title}", SECONDS, label))
    if not plots:
        return []
    note = "Left is faster, up is better. The line joins the combinations that no other one beats (the Pareto front)."
    body = f"<p class='note'>{note}</p>{_names(record)}<div class='plots'>{''.join(plots)}</div>"
    return [f"<h2>Speed against quality</h2>{body}"]


MEASURES: tuple[tuple[str, str, Value, float | None], ...] = (
    (
        "likeness of the pictures",
        "SSIM with combination 1",
        lambda one: one.quality.ssim.median if one.quality else None,
        1.0,
    ),
    (
        "likeness of the latents",
        "1 - relative latent error",
        lambda one: 1 - one.quality.latent_error.median if one.quality and one.quality.latent_error else None,
        1.0,
    ),
)
"""Title, label and value; the last is that of the first combination, where it is what the others are compared with."""


def _measures(record: Record) -> Iterator[tuple[str, str, Value, float | None]]:
    """Those of the packages' metrics that are better when higher, as in MEASURES."""
    metrics = {(one.package, one.name): one for combination in record.combinations for one in combination.metrics}
    for key, metric in metrics.items():
        if metric.better == "higher":
            yield metric.heading, metric.heading, partial(_median, key), None


def _median(key: tuple[str, str], one: Combination) -> float | None:
    """Of a package's metric."""
    return next((metric.values.median for metric in one.metrics if (metric.package, metric.name) == key), None)


def _breakdown(record: Record) -> str:
    """Seconds inside each unit's hooks."""
    rows: dict[str, dict[str, float]] = {}
    for number, one in enumerate(record.combinations, start=1):
        if one.engine_seconds is not None:
            units: dict[str, float] = {}
            for hook in one.hooks:
                if hook.hook != "setup":
                    units[hook.unit] = units.get(hook.unit, 0.0) + hook.seconds
            rows[f"{number} {one.name}"] = {**units, ENGINE: one.engine_seconds}
    if not rows:
        return ""
    note = "One profiled video: what a unit's hooks take, without the hooks of other units that run inside them."
    plot = bars(rows, "Seconds by unit", "s")
    return f"<h2>Where the time goes</h2><p class='note'>{note}</p><div>{plot}</div>{_names(record)}"


def _names(record: Record) -> str:
    items = [
        f"<b style='color:{colour_of(number)}'>{number}</b> {escape(one.name)}"
        for number, one in enumerate(record.combinations, start=1)
        if one.engine_seconds is not None
    ]
    return f"<p class='note'>{' &emsp; '.join(items)}</p>"


def _strips(record: Record, frames: Mapping[str, np.ndarray]) -> str:
    """The same frames of every combination below each other, and what differs from the first."""
    shown = [(number, one.name) for number, one in enumerate(record.combinations, start=1) if one.name in frames]
    if not shown:
        return ""
    first = frames[shown[0][1]]
    rows = []
    for number, name in shown:
        pictures = frames[name]
        heading = f"<b style='color:{colour_of(number)}'>{number}</b> {escape(name)}"
        rows.append(f"<figure><figcaption>{heading}</figcaption>{_strip(pictures, name)}")
        if pictures.shape == first.shape and not np.array_equal(pictures, first):
            difference = np.abs(pictures.astype(np.int16) - first) * AMPLIFIED
            rows.append(_strip(difference.clip(0, 255).astype(np.uint8), f"{name}, difference"))
        rows.append("</figure>")
    note = (
        f"The same frames of the first seed; below, the difference from combination {shown[0][0]}, times {AMPLIFIED}."
    )
    return f"<h2>Pictures</h2><p class='note'>{note}</p>{''.join(rows)}"


def _strip(pictures: np.ndarray, text: str) -> str:
    """Pictures (n h w 3) side by side, as an image element."""
    image = Image.fromarray(np.concatenate(list(pictures), axis=1))
    count, height, width = pictures.shape[:3]
    scale = min(1.0, LARGEST / max(height, width))
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{count} frames of {escape(text)}" src="data:image/jpeg;base64,{data}">'


def _settings(record: Record) -> str:
    plans = {str(number): " + ".join(one.units) for number, one in enumerate(record.combinations, start=1) if one.units}
    return "".join(
        (
            f"<h2>What was measured</h2>{_facts({'command': record.command, **record.asked.model_dump(mode='json')})}",
            f"<h3>Where</h3>{_facts(record.machine.model_dump(mode='json'))}",
            f"<h3>Plans</h3>{_facts(plans)}",
        )
    )


def _facts(facts: Mapping[str, object]) -> str:
    """Names and values as a table, without those that are nothing."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    rows = (
        f"<tr><th>{escape(name)}</th><td class='left'>{escape(text)}</td></tr>"
        for name, text in texts.items()
        if text != "null"
    )
    return f"<table>{''.join(rows)}</table>"


PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1400px; padding: 0 1em; color: #222; }
h1 { margin-bottom: 0; } h2 { margin-top: 2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 3px 7px; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; }
th { font-weight: 600; } th.group { text-align: center; } td { white-space: nowrap; }
td.left { text-align: left; white-space: normal; min-width: 12em; }
.wide { overflow-x: auto; } .note { color: #666; } .bad { color: #b00020; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1em; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #222; }
svg .title { font-weight: 600; font-size: 13px; } svg .mark { font-weight: 600; } svg .tick { fill: #666; }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; } svg .grid { stroke: #e4e4e4; }
svg .front { fill: none; stroke: #999; stroke-dasharray: 4 3; }
figure { margin: 1em 0; } figure img { display: block; max-width: 100%; margin-top: 2px; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
"""
)
