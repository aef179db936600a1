"""What a golden case is, how one is read, and how a kind registers the function that replays it.

A runner takes a `Case` and returns nothing: it calls `case.compare(name, actual)` for every tensor it reproduces
(absolute tolerance by default, see README.md and README-plugins.md for the figures) and `case.equal(...)` for exact
values. Runners live in `kind_*.py` beside this file.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

Runner = Callable[["Case"], None]
RUNNERS: dict[str, Runner] = {}


def kind(*names: str) -> Callable[[Runner], Runner]:
    """Register the decorated function as the runner of these kinds."""

    def register(runner: Runner) -> Runner:
        for name in names:
            if name in RUNNERS:
                raise ValueError(f"golden kind {name!r} has two runners")
            RUNNERS[name] = runner
        return runner

    return register


@dataclass
class Case:
    """One case file. For JSON kinds `records` holds the list of {inputs, expected, note}; else the tensor groups."""

    path: Path
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    expected: dict[str, Tensor] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    errors: list[tuple[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    checks: int = 0

    @property
    def name(self) -> str:
        return self.path.stem.partition("-")[2] or self.path.stem

    @property
    def worst(self) -> float:
        """The largest error relative to the largest expected value of its tensor."""
        return max((error for _, error in self.errors), default=0.0)

    def compare(self, name: str, actual: Tensor, *, atol: float | None = None, rtol: float | None = None) -> None:
        """Compare `actual` with `expected/<name>`: |difference| <= atol, or <= rtol * max|expected|."""
        self.close(name, actual, self.expected[name], atol=atol, rtol=rtol)

    def close(
        self, name: str, actual: Tensor, expected: Tensor, *, atol: float | None = None, rtol: float | None = None
    ) -> None:
        """Compare two tensors under one of the two tolerances and record the relative error."""
        if atol is None and rtol is None:
            raise ValueError("state a tolerance")
        self.checks += 1
        if tuple(actual.shape) != tuple(expected.shape):
            self.failures.append(f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
            return
        if actual.numel() == 0:
            return
        difference = (actual.double() - expected.double()).abs().max().item()
        largest = max(expected.double().abs().max().item(), 1e-12)
        self.errors.append((name, difference / largest))
        allowed = atol if atol is not None else (rtol or 0.0) * largest
        if not difference <= allowed:  # also catches nan
            self.failures.append(f"{name}: off by {difference:.3g}, allowed {allowed:.3g}")

    def equal(self, name: str, actual: Any, expected: Any) -> None:
        """Require equality of an integer, a flag, a string or a list of those."""
        self.checks += 1
        if actual != expected:
            self.failures.append(f"{name}: {actual!r}, expected {expected!r}"[:400])


def group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix/`, with the prefix removed."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + "/")}


def read_case(path: Path) -> Case:
    """Read one case file of either format."""
    if path.suffix == ".json":
        return Case(path, kind=path.stem.partition("-")[0], records=json.loads(path.read_text()))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    return Case(
        path,
        kind=metadata.get("kind") or path.stem.partition("-")[0],
        config=json.loads(metadata.get("config", "{}")),
        weights=group(tensors, "weights"),
        inputs=group(tensors, "inputs"),
        expected=group(tensors, "expected"),
    )


def load_runners() -> None:
    """Import every `kind_*.py` beside this file, once."""
    package = importlib.import_module("tests.golden")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("kind_"):
            importlib.import_module(f"tests.golden.{module.name}")


def case_files(directory: Path) -> Iterator[Path]:
    """All case files of a directory in a stable order."""
    yield from sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".json"))


def run_file(path: Path) -> tuple[Case, str]:
    """Read and replay a case: the case and "pass", "fail" or "skip" (no runner for its kind)."""
    load_runners()
    case = Case(path, kind=path.stem.partition("-")[0])
    try:
        case = read_case(path)
        runner = RUNNERS.get(case.kind)
        if runner is None:
            return case, "skip"
        with torch.no_grad():
            runner(case)
        if not case.checks:
            case.failures.append("the runner checked nothing")
    except Exception as error:  # a crash is one failed case, not the end of the run
        case.failures.append(f"{type(error).__name__}: {error}"[:400])
    return case, "fail" if case.failures else "pass"
