"""What a golden case is, how one is read, and how a kind registers the function that replays it.

A runner takes a `Case` and returns nothing: it calls `case.compare(name, actual)` for every tensor it reproduces
(absolute tolerance by default, see README.md and README-plugins.md for the figures) and `case.equal(...)` for exact
values. Runners live in `kind_*.py` beside this file.

A case passes only if its runner has looked at all of it: every key of `config`, every input, and every expected value,
which counts as looked at when it is compared. What a kind cannot use it names with the reason, see `kind`.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

Runner = Callable[["Case"], None]
RUNNERS: dict[str, Runner] = {}
UNUSED: dict[str, dict[str, str]] = {}
"""By kind: what its runner makes no use of, and the reason."""
RECORD_KEYS = {"inputs", "expected", "note", "source"}


def kind(*names: str, unused: dict[str, str] | None = None) -> Callable[[Runner], Runner]:
    """Register the decorated function as the runner of these kinds.

    unused: the reason for every part of a case (`config.call.rank`, `inputs.y`, `expected.out`) that the runner has no
    use for, by patterns as of file names.
    """

    def register(runner: Runner) -> Runner:
        for name in names:
            if name in RUNNERS:
                raise ValueError(f"golden kind {name!r} has two runners")
            RUNNERS[name] = runner
            UNUSED[name] = unused or {}
        return runner

    return register


class Recorded(Mapping[str, Any]):
    """A mapping that remembers which of its entries were read; entries that are mappings do so themselves."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.entries = {key: Recorded(value) if isinstance(value, dict) else value for key, value in values.items()}
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = self.entries[key]
        self.used.add(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def unread(self) -> Iterator[str]:
        """The dotted names of the entries that nobody has read."""
        for key, value in self.entries.items():
            if isinstance(value, Recorded) and len(value):
                yield from (f"{key}.{name}" for name in value.unread())
            elif key not in self.used and not isinstance(value, Recorded):
                yield key

    def read(self) -> dict[str, Any]:
        """All of it as dictionaries; then all of it is read."""
        return {key: value.read() if isinstance(value, Recorded) else value for key, value in self.items()}

    def plain(self) -> dict[str, Any]:
        """All of it as dictionaries, which reads nothing."""
        return {key: value.plain() if isinstance(value, Recorded) else value for key, value in self.entries.items()}


@dataclass
class Case:
    """One case file. For JSON kinds `records` holds the list of {inputs, expected, note}; else the tensor groups.

    `inputs` and `expected` of a record remember what is read, as `config` and `inputs` of a case do.
    """

    path: Path
    kind: str
    config: Recorded = field(default_factory=lambda: Recorded({}))
    weights: dict[str, Tensor] = field(default_factory=dict)
    inputs: Recorded = field(default_factory=lambda: Recorded({}))
    expected: dict[str, Tensor] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    compared: set[str] = field(default_factory=set)
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
        self.compared.add(name)
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

    def take(self, name: str) -> Tensor:
        """`expected/<name>`, for a comparison that `compare` cannot make."""
        self.compared.add(name)
        return self.expected[name]

    def equal(self, name: str, actual: Any, expected: Any) -> None:
        """Require equality of an integer, a flag, a string or a list of those."""
        self.checks += 1
        if actual != expected:
            self.failures.append(f"{name}: {actual!r}, expected {expected!r}"[:400])

    def left(self) -> Iterator[str]:
        """What the runner has not looked at and its kind does not name as unused."""
        parts = [f"config.{name}" for name in self.config.unread()]
        parts += [f"inputs.{name}" for name in self.inputs.unread()]
        parts += [f"expected.{name}" for name in self.expected if name not in self.compared]
        for number, record in enumerate(self.records):
            parts += [f"{number}.{side}.{name}" for side in ("inputs", "expected") for name in record[side].unread()]
            parts += [f"{number}.{name}" for name in record.keys() - RECORD_KEYS]
        return (part for part in parts if not any(fnmatch(part, pattern) for pattern in UNUSED.get(self.kind, {})))


def group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix/`, with the prefix removed."""
    return {key[len(prefix) + 1 :]: tensors[key] for key in tensors if key.startswith(prefix + "/")}


def read_record(record: dict[str, Any]) -> dict[str, Any]:
    """An entry of a JSON file, whose two sides remember what is read."""
    return {**record, **{side: Recorded(record[side]) for side in ("inputs", "expected")}}


def read_case(path: Path) -> Case:
    """Read one case file of either format."""
    if path.suffix == ".json":
        return Case(path, kind=path.stem.partition("-")[0], records=[*map(read_record, json.loads(path.read_text()))])
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    return Case(
        path,
        kind=metadata.get("kind") or path.stem.partition("-")[0],
        config=Recorded(json.loads(metadata.get("config", "{}"))),
        weights=group(tensors, "weights"),
        inputs=Recorded(group(tensors, "inputs")),
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
        case.failures += [f"{part} is not used" for part in case.left()]
    except Exception as error:  # a crash is one failed case, not the end of the run
        case.failures.append(f"{type(error).__name__}: {error}"[:400])
    return case, "fail" if case.failures else "pass"
