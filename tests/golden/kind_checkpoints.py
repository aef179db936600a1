"""Golden kinds of the checkpoint code: `hash` (detection), `smart_load` (a smaller checkpoint in a larger network)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from omniavatar.checkpoints import Registry, Row, fingerprint
from omniavatar.checkpoints.headers import TensorInfo
from omniavatar.checkpoints.loading import check_names, fill
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.errors import CheckpointError
from tests.golden.cases import Case, kind


@kind("hash")
def run_hash(case: Case) -> None:
    rows = {row.hash: row for row in Registry.builtin().rows if row.hash}
    for record in case.records:
        inputs, expected = record["inputs"], record["expected"]
        if "entries" in inputs:
            entries = shapes_only(inputs["entries"])
        elif expected["with_shape"] in rows:
            entries = checked_row(case, rows[expected["with_shape"]], inputs.get("constructor"))
        else:
            continue  # a network that belongs to a plugin
        case.equal("with_shape", fingerprint(entries), expected["with_shape"])
        case.equal("without_shape", fingerprint(entries, shapes=False), expected["without_shape"])
        case.equal("num_keys", len(entries), expected.get("num_keys", len(entries)))


def checked_row(case: Case, row: Row, constructor: dict[str, Any] | None) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a table row, whose configuration must agree with the case's where both speak."""
    (spec,) = row.components.values()
    for key, value in (constructor or {}).items():
        case.equal(f"{row.name}: {key}", spec.config.get(key, value), value)
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
    shapes: dict[str, list[int]] = case.config["model_shapes"]
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
