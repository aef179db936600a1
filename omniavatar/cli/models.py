"""`omni models`: which checkpoints are known, what a file is, and whether a download is sound. Reads headers only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omniavatar.cli import Commands
from omniavatar.cli.console import saying_faults
from omniavatar.errors import CheckpointError

if TYPE_CHECKING:
    from rich.console import Console

    from omniavatar.checkpoints import Component, Detection, Registry, Row, Verdict
    from omniavatar.checkpoints.registry import VerdictKind

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group(cls=Commands)
def models() -> None:
    """Known checkpoints, and what the files here are."""


@models.command("list")
@as_json
def list_command(as_json: bool) -> None:
    """List every known checkpoint, those of plugins included."""
    rows = registry().rows
    if as_json:
        _print_json([row_facts(row) for row in rows])
        return
    table = _table("name", "roles", "params", "repo", "recognised by")
    for row in rows:
        facts = row_facts(row)
        table.add_row(row.name, ", ".join(facts["roles"]), billions(row.num_params), row.repo, recognised_by(row))
    _console().print(table)


@models.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--keys", is_flag=True, help="Also list every tensor.")
@as_json
def inspect(paths: tuple[str, ...], keys: bool, as_json: bool) -> None:
    """Say what model files, shard patterns or folders are.

    An unknown file is compared with the nearest known checkpoint.
    """
    known = registry()
    detections = [detection for path in paths for detection in known.detect_all(path)]
    if as_json:
        _print_json([detection_facts(detection, keys) for detection in detections])
        return
    for detection in detections:
        _print_detection(detection, keys)


@models.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@as_json
def verify(folder: Path, as_json: bool) -> None:
    """Check every model below FOLDER: known, unknown or damaged.

    Names, shapes and file lengths are checked, the values are not. Exit code 1 unless all are known.
    """
    verdicts = list(registry().scan(folder))
    if not verdicts:
        raise CheckpointError(f"no model files in or below {folder}")
    if as_json:
        _print_json([verdict_facts(verdict) for verdict in verdicts])
    else:
        _print_verdicts(folder, verdicts)
    if any(verdict.error for verdict in verdicts):
        raise click.exceptions.Exit(1)


def registry() -> Registry:
    """The tables of this package and of every installed plugin."""
    from omniavatar.plugins import discover

    plugins = discover()
    with saying_faults(plugins):
        return plugins.registry()


# --- what is shown, as plain data


def row_facts(row: Row) -> dict[str, Any]:
    return {**row.model_dump(exclude={"components"}), "roles": list(row.components)}


def detection_facts(detection: Detection, keys: bool) -> dict[str, Any]:
    return {
        "name": detection.row.name,
        "repo": detection.row.repo,
        "note": detection.row.note,
        "files": [str(file) for file in detection.files],
        "hash": detection.header.hash,
        "num_keys": len(detection.header.tensors),
        "num_params": detection.header.num_params,
        "components": [component_facts(component, keys) for component in detection.components],
    }


def component_facts(component: Component, keys: bool) -> dict[str, Any]:
    facts = {
        "role": component.role,
        "network": component.spec.network,
        "overlay": component.spec.overlay,
        "config": dict(component.config),
        "constants": dict(component.constants),
        "num_keys": len(component.tensors),
        "num_params": component.num_params,
        "dtypes": dict(Counter(tensor.dtype for tensor in component.tensors.values())),
    }
    if keys:
        facts["keys"] = {name: [list(tensor.shape), tensor.dtype] for name, tensor in component.tensors.items()}
    return facts


def verdict_facts(verdict: Verdict) -> dict[str, Any]:
    return {
        "path": str(verdict.path),
        "verdict": verdict.kind,
        "name": verdict.detection.row.name if verdict.detection else None,
        "error": str(verdict.error) if verdict.error else None,
    }


def recognised_by(row: Row) -> str:
    """The beginning of the hash, or in words what stands in for it."""
    if row.hash:
        return f"hash {row.hash[:12]}"
    return f"folder with model_type {row.model_type}" if row.model_type else f"{len(row.match)} name patterns"


def billions(number: int | None) -> str:
    """14288491584 -> "14.29 B"; unknown -> "-"."""
    if number is None:
        return "-"
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            return f"{number / limit:.2f} {unit}"
    return str(number)


# --- printing


def _print_detection(detection: Detection, keys: bool) -> None:
    from rich.text import Text

    console, row = _console(), detection.row
    console.print(Text(row.name, "bold"), row.repo, f"hash {detection.header.hash}", sep="  ", soft_wrap=True)
    if row.note:
        console.print(row.note)
    for file in detection.files:
        console.print(f"  {file}", soft_wrap=True)
    table = _table("role", "network", "keys", "params", "dtype", "configuration")
    for component in detection.components:
        facts = component_facts(component, keys=False)
        network = facts["network"] or ("overlay on the base" if facts["overlay"] else "tensors")
        numbers = {**component.config, **component.constants}
        table.add_row(
            component.role,
            network.rpartition(":")[2],
            str(facts["num_keys"]),
            billions(facts["num_params"]),
            ", ".join(facts["dtypes"]),
            ", ".join(f"{key}={value}" for key, value in numbers.items()),
        )
    console.print(table)
    if keys:
        _print_keys(console, detection.components)


def _print_keys(console: Console, components: Iterable[Component]) -> None:
    for component in components:
        for name, tensor in component.tensors.items():
            console.print(f"{component.role}  {name}  {list(tensor.shape)}  {tensor.dtype}", soft_wrap=True)


def _print_verdicts(folder: Path, verdicts: list[Verdict]) -> None:
    from rich.text import Text

    styles: dict[VerdictKind, str] = {"known": "green", "unknown": "yellow", "damaged": "red"}
    table = _table("path", "verdict", "what")
    for verdict in verdicts:
        what = verdict.detection.row.name if verdict.detection else str(verdict.error)
        path = verdict.path.relative_to(folder) if verdict.path != folder else verdict.path
        table.add_row(str(path), Text(verdict.kind, styles[verdict.kind]), what)
    _console().print(table)
    kinds = [verdict.kind for verdict in verdicts]
    _console().print(", ".join(f"{kinds.count(kind)} {kind}" for kind in styles))


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=2))
