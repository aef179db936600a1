"""Golden kinds of the checkpoint code: `hash` (detection), `smart_load` (a smaller checkpoint in a larger network)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omniavatar.checkpoints import Row, fingerprint
from omniavatar.checkpoints.headers import TensorInfo
from omniavatar.checkpoints.loading import build_on_meta, check_names, fill
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.errors import CheckpointError
from tests.golden.cases import Case, kind
from tests.golden.files import FACTS, NUMBERS, registry


@kind("hash")
def run_hash(case: Case) -> None:
    rows = {row.hash: row for row in registry().rows if row.hash}
    for record in case.records:
        inputs, expected = record["inputs"], record["expected"]
        if "entries" in inputs:
            entries = shapes_only(inputs["entries"].read())
        else:
            row = rows.get(expected["with_shape"])
            case.equal("a row has the hash", row is not None, expected["matches_detection_table"])
            if row is None:
                continue
            case.equal("name", is_named(inputs["checkpoint"], row), True)
            role = "dit" if inputs["network"].startswith("diffusers ") else inputs["network"]
            entries = checked_row(case, row, role, inputs.get("constructor", {}))
        case.equal("with_shape", fingerprint(entries), expected["with_shape"])
        case.equal("without_shape", fingerprint(entries, shapes=False), expected["without_shape"])
        case.equal("num_keys", len(entries), expected.get("num_keys", len(entries)))


def is_named(name: str, row: Row) -> bool:
    """Whether a row is that of a checkpoint with this name, behind which its layout may stand."""
    return any(name.partition(" ")[0] in own for own in (row.name, row.repo, row.file, *row.also))


def checked_row(case: Case, row: Row, role: str, constructor: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a table row, whose configuration must agree with the case's."""
    spec = row.components[role]
    networks, numbers = {role: build_on_meta(str(spec.network), spec.config)}, {role: spec.config}
    for key in constructor:
        fact = FACTS[key](networks, numbers) if key in FACTS else spec.config[NUMBERS.get(key, (role, key))[1]]
        case.equal(f"{row.name}: {key}", fact, constructor[key])
    return expected_shapes(row)


def shapes_only(entries: dict[str, Any]) -> dict[str, Any]:
    """Lists are shapes, objects nested dictionaries, anything else no part of the hash."""
    return {
        name: shapes_only(value) if isinstance(value, dict) else value
        for name, value in entries.items()
        if isinstance(value, dict | list)
    }


@kind("smart_load")
def run_smart_load(case: Case) -> None:
    """The original skips, ignores and leaves memory as it was; here each of these gaps must be allowed by name."""
    shapes: dict[str, list[int]] = case.config["model_shapes"].read()
    status = {name: status_of(shape, case.weights.get(name)) for name, shape in shapes.items()}
    case.equal("status", status, case.config["status"].read())
    absent: list[str] = case.config["missing"]
    superfluous = {*case.config["ignored_checkpoint_keys"], *absent}
    usable = {name: tensor for name, tensor in case.weights.items() if name not in superfluous}
    case.equal("a strict load", accepts(shapes, case.weights, optional=absent), False)
    case.equal("a gap not allowed", accepts(shapes, usable, optional=[]), False)
    case.equal("gaps allowed by name", accepts(shapes, usable, optional=absent), True)
    network = on_meta(shapes)
    fill(network, iter(usable.items()))
    filled = network.state_dict()
    for name, expected in case.expected.items():
        region = tuple(slice(size) for size in expected.shape)
        case.compare(name, filled[name][region], atol=0.0)
        filled[name][region] = 0
        case.equal(f"values of {name} outside the region", filled[name].count_nonzero().item(), 0)
    for name in absent:
        case.equal(f"values of {name}", filled[name].count_nonzero().item(), 0)


def status_of(shape: list[int], weight: torch.Tensor | None) -> str:
    """What becomes of a weight of a network with this shape, in the words of the cases."""
    if weight is None:
        return "absent from the checkpoint"
    if any(here < there for here, there in zip(shape, weight.shape, strict=True)):
        return "skipped, checkpoint larger"
    return "copied" if list(weight.shape) == shape else "leading region copied"


def accepts(shapes: dict[str, list[int]], tensors: dict[str, torch.Tensor], optional: list[str]) -> bool:
    """Whether the strict check lets these tensors into such a network."""
    sources = {name: TensorInfo(name, tuple(tensor.shape), "float32", Path("case")) for name, tensor in tensors.items()}
    try:
        check_names(on_meta(shapes), sources, growable=["patch_embedding.weight"], optional=optional)
    except CheckpointError:
        return False
    return True


def on_meta(shapes: dict[str, list[int]]) -> nn.Module:
    """A network that has exactly these parameters."""
    network = nn.Module()
    for name, shape in shapes.items():
        module_name, _, parameter = name.rpartition(".")
        if not hasattr(network, module_name):
            network.add_module(module_name, nn.Module())
        network.get_submodule(module_name).register_parameter(
            parameter, nn.Parameter(torch.empty(shape, device="meta"))
        )
    return network
