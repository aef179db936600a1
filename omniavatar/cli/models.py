"""`omni models`: which checkpoints are known, what a file is, and whether a download is sound. Reads headers only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omniavatar.cli import Commands
from omniavatar.cli.console import AS_JSON, say, show, show_json, table_of
from omniavatar.cli.convert import convert
from omniavatar.cli.download import download
from omniavatar.cli.fields import UserPath
from omniavatar.cli.tables import registry
from omniavatar.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from omniavatar.checkpoints import Component, Detection, Row, Verdict
    from omniavatar.checkpoints.registry import VerdictKind

SEARCH = click.option(
    "--models", "search", multiple=True, metavar="FOLDER", help="Also search this folder for models; repeatable."
)
TEST_TABLE = "test.toml"
"""The table of a package with checkpoints that only its tests use."""


@click.group(cls=Commands)
def models() -> None:
    """Known checkpoints, and what the files here are."""


@models.command("list", short_help="List known checkpoints; with --here, the files on this machine.")
@click.option("--all", "also_tests", is_flag=True, help="Also those that only tests use.")
@click.option("--here", is_flag=True, help="List what lies on this machine instead, and what it serves.")
@SEARCH
@AS_JSON
def list_command(also_tests: bool, here: bool, search: tuple[str, ...], as_json: bool) -> None:
    """List every known checkpoint, those of plugins included; with --here, the files on this machine.

    --here looks into pretrained_models, the folders of --models and of the variable OMNI_MODELS, and the cache of
    Hugging Face, says which configurations the files serve, and what each still lacks.
    """
    known = registry()
    if here:
        from omniavatar.cli.here import Here

        found = Here.look(known, search)
        if as_json:
            show_json(found.facts())
        else:
            found.print()
        return
    if search:
        raise InputError("--models goes with --here; without it, only the tables are listed")
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
@click.option("--on", multiple=True, metavar="PATH", help="Say how LoRA files fit this model; repeatable.")
@AS_JSON
def inspect(paths: tuple[str, ...], keys: bool, on: tuple[str, ...], as_json: bool) -> None:
    """Say what model files, shard patterns or folders are.

    An unknown file is compared with the nearest known checkpoint; a bad one does not end it for the others.
    """
    from omniavatar.checkpoints.registry import examining

    known = registry()
    base = [detection for path in on for detection in known.detect_all(path)]
    found: list[tuple[Detection, dict[str, Any]]] = []
    errors = []
    for path in paths:
        try:
            with examining(Path(path)):
                found += [(detection, lora_facts(detection, base)) for detection in known.detect_all(path)]
        except CheckpointError as error:
            errors.append(error)
    if as_json:
        if found or not errors:
            show_json([{**detection_facts(detection, keys), **lora} for detection, lora in found])
    else:
        for detection, lora in found:
            _print_detection(detection, keys)
            show(*lora_lines(lora, detection))
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


models.add_command(download)
models.add_command(convert)


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


def lora_facts(detection: Detection, base: Sequence[Detection]) -> dict[str, Any]:
    """What a LoRA file has, by its header, and how it fits the networks of a model; nothing of other files."""
    from omniavatar.checkpoints import Bundle
    from omniavatar.checkpoints.registry import LORA, SECOND_TRANSFORMER, TRANSFORMER

    adapters = Bundle([detection]).adapters()
    if not adapters:
        return {}
    lora = adapters[0].read(values=False)
    facts = lora.facts()
    if base:
        models = Bundle([*base, detection])
        (adapter,) = [one for one in models.adapters() if one.component in detection.components]
        experts = [TRANSFORMER, *({SECOND_TRANSFORMER} & models.roles)]
        fits = {
            role: lora.fit(models.shapes(role), partial=True, part=part, is_named=adapter.is_named)
            for role, part in adapter.places(experts).items()
            if role in models.roles
        }
        if not fits:
            wanted, there = next(iter(adapter.places(experts))), ", ".join(sorted(models.roles - {LORA}))
            raise CheckpointError(
                f"LoRA {adapter.name}: it is for the network '{wanted}', which the model lacks; there are {there}"
            )
        fit = reduce(lambda one, other: one.beside(other), fits.values())
        fit.check()
        facts |= {
            **fit.facts(),
            "networks": {role: len(one.changes) for role, one in fits.items() if one.changes},
            "fit": str(fit),
        }
    return {"lora": facts}


def lora_lines(facts: Mapping[str, Any], detection: Detection) -> Iterator[str]:
    """The same in words."""
    for lora in facts.values():
        kinds = ", ".join(f"{count} {kind}" for kind, count in lora["kinds"].items())
        ranks = ", ".join(map(str, lora["ranks"])) or "none"
        scales = ", ".join(f"{scale:g}" for scale in lora["scales"]) or "none"
        yield f"LoRA of {lora['layers']} layers: {kinds}; ranks {ranks}; alpha / rank {scales}"
        yield lora.get("fit", f"how it fits a model: omni models inspect {detection.files[0]} --on MODEL")


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
    if row.lora:
        return "endings of names"
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
        kind = (facts["network"] or "").rpartition(":")[2]
        what = f"{kind} over the base" if kind else "overlay on the base"
        network = what if facts["overlay"] else kind or "tensors"
        numbers = {**component.config, **component.constants}
        table.add_row(
            component.role,
            network,
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
