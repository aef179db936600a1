"""`omni models`: which checkpoints are known, what a file is, and whether a download is sound. Reads headers only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omniavatar.cli import Commands
from omniavatar.cli.console import AS_JSON, say, saying_faults, show, show_json, table_of
from omniavatar.cli.fields import UserPath
from omniavatar.errors import CheckpointError

if TYPE_CHECKING:
    from omniavatar.checkpoints import Component, Detection, Registry, Row, Verdict
    from omniavatar.checkpoints.registry import VerdictKind

TEST_TABLE = "test.toml"
"""The table of a package with checkpoints that only its tests use."""


@click.group(cls=Commands)
def models() -> None:
    """Known checkpoints, and what the files here are."""


@models.command("list")
@click.option("--all", "also_tests", is_flag=True, help="Also those that only tests use.")
@AS_JSON
def list_command(also_tests: bool, as_json: bool) -> None:
    """List every known checkpoint, those of plugins included."""
    known = registry()
    rows = [row for row in known.rows if also_tests or Path(str(known.origin(row))).name != TEST_TABLE]
    if as_json:
        show_json([row_facts(row) for row in rows])
        return
    table = table_of("name", "roles", "params", "repo", "recognised by")
    for row in rows:
        facts = row_facts(row)
        table.add_row(row.name, ", ".join(facts["roles"]), billions(row.num_params), row.repo, recognised_by(row))
    show(table)


@models.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--keys", is_flag=True, help="Also list every tensor.")
@AS_JSON
def inspect(paths: tuple[str, ...], keys: bool, as_json: bool) -> None:
    """Say what model files, shard patterns or folders are.

    An unknown file is compared with the nearest known checkpoint; a bad one does not end it for the others.
    """
    from omniavatar.checkpoints.registry import examining

    known = registry()
    detections: list[Detection] = []
    errors = []
    for path in paths:
        try:
            with examining(Path(path)):
                detections += known.detect_all(path)
        except CheckpointError as error:
            errors.append(error)
    if as_json:
        if detections or not errors:
            show_json([detection_facts(detection, keys) for detection in detections])
    else:
        for detection in detections:
            _print_detection(detection, keys)
    for other in errors[:-1]:
        say(str(other))
    if errors:
        raise errors[-1]


@models.command()
@click.argument("folder", type=UserPath(exists=True, file_okay=False))
@AS_JSON
def verify(folder: Path, as_json: bool) -> None:
    """Check every model below FOLDER: known, unknown or damaged.

    Names, shapes and file lengths are checked, the values are not. Exit code 1 unless all are known.
    """
    verdicts = list(registry().scan(folder))
    if not verdicts:
        raise CheckpointError(f"no model files in or below {folder}")
    if as_json:
        show_json([verdict_facts(verdict) for verdict in verdicts])
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
    row = detection.row
    show(f"{row.name}  {row.repo}  hash {detection.header.hash}")
    if row.note:
        show(row.note)
    show(*(f"  {file}" for file in detection.files))
    table = table_of("role", "network", "keys", "params", "dtype", "configuration")
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
    show(table)
    if keys:
        show(*key_lines(detection.components))


def key_lines(components: Iterable[Component]) -> Iterator[str]:
    """Role, name, shape and type of every tensor."""
    for component in components:
        for name, tensor in component.tensors.items():
            yield f"{component.role}  {name}  {list(tensor.shape)}  {tensor.dtype}"


def _print_verdicts(folder: Path, verdicts: list[Verdict]) -> None:
    from rich.text import Text

    styles: dict[VerdictKind, str] = {"known": "green", "unknown": "yellow", "damaged": "red"}
    table = table_of("path", "verdict", "what")
    for verdict in verdicts:
        what = verdict.detection.row.name if verdict.detection else str(verdict.error)
        path = verdict.path.relative_to(folder) if verdict.path != folder else verdict.path
        table.add_row(str(path), Text(verdict.kind, styles[verdict.kind]), what)
    kinds = [verdict.kind for verdict in verdicts]
    show(table, ", ".join(f"{kinds.count(kind)} {kind}" for kind in styles))
