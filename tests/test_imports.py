"""Who may import whom (docs/architecture.md), read from the source without running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import omniavatar
from omniavatar import lazy
from omniavatar.units import BUILTIN

ROOT = Path(omniavatar.__file__).parent
# Each part of the package and the parts it may import, itself always included; the rest of the package is at the top.
ALLOWED = {
    "errors": set(),
    "models": {"errors", "lazy"},
    "roles": set(),
    "checkpoints": {"errors", "models", "resources", "roles", "values"},
    "media": {"errors", "lazy"},
    "distributed": {"errors", "models"},
    "hookspecs": set(),
    "deprecation": set(),
    "lazy": set(),
    "values": set(),
    "engine": {"deprecation", "errors", "roles", "values", "hookspecs", "lazy", "models", "media", "distributed"},
    "units": {"errors", "hookspecs", "lazy", "models", "media", "distributed", "engine"},
}
# Folders that may import everything.
FREE = {"bench", "cli", "estimate", "testing", "training"}
# Imports for type checkers only, which say what a hook receives and cost nothing.
TYPES_ONLY = {"hookspecs": {"checkpoints", "engine"}}


def parts(path: Path) -> str:
    """The part of the package that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST, *, types: bool) -> Iterator[str]:
    """The names of all imported modules, those in functions included; `types`: those under TYPE_CHECKING instead."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if (id(node) in guarded) == types:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"relative import in line {node.lineno}"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_parts(path: Path, *, types: bool = False) -> set[str]:
    """The other parts of the package that a file imports."""
    names = imports(ast.parse(path.read_text(encoding="utf-8")), types=types)
    return {name.split(".")[1] for name in names if name.startswith("omniavatar.")} - {parts(path), "__version__"}


FILES = sorted(path for path in ROOT.rglob("*.py") if parts(path) in ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    part = parts(path)
    assert imported_parts(path) <= ALLOWED[part]
    assert imported_parts(path, types=True) <= ALLOWED[part] | TYPES_ONLY.get(part, set())


@pytest.mark.parametrize("path", sorted((ROOT / "units").glob("*.py")), ids=lambda path: path.stem)
def test_units_know_no_other_unit(path: Path) -> None:
    if path.stem != "__init__":
        names = imports(ast.parse(path.read_text(encoding="utf-8")), types=False)
        assert [name for name in names if name.startswith("omniavatar.units")] == []


def test_every_folder_has_a_rule() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders <= set(ALLOWED) | FREE
    assert {"models", "checkpoints", "media", "engine", "units"} <= folders


def test_the_reader_sees_imports_wherever_they_stand() -> None:
    source = """
import omniavatar.cli
if TYPE_CHECKING:
    from omniavatar.engine import x
def f():
    from omniavatar import units
"""
    tree = ast.parse(source)
    assert list(imports(tree, types=False)) == ["omniavatar.cli", "omniavatar.units"]
    assert list(imports(tree, types=True)) == ["omniavatar.engine.x"]


def test_the_contract_and_the_built_in_plugin_import_no_torch() -> None:
    code = "import sys, omniavatar.hookspecs, omniavatar.builtin, omniavatar.plugins; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


# A unit of each of the packages under plugins/.
OF_PLUGINS = {"animate-motion", "fun-camera", "image-to-video", "moe", "motion", "s2v-audio", "ti2v", "vace"}
HEAVY = ("numpy", "torch", "transformers")


@pytest.mark.parametrize("command", ["units list", "units show teacache", "run --help"])
def test_units_of_all_packages_are_told_without_torch(command: str) -> None:
    code = f"""
import sys
from omniavatar.cli import run_cli
code = run_cli({command.split()!r})
sys.exit(str([code, *sorted({set(HEAVY)!r} & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[0]", "and what it has imported; `omniavatar.lazy` tells how not to"
    if command == "units list":
        listed = {line.split(" ")[0] for line in done.stdout.splitlines()}
        assert {unit.name for unit in BUILTIN} | OF_PLUGINS <= listed


def test_a_lazy_module_is_the_module() -> None:
    assert lazy.torch.tensor is torch.tensor
    assert lazy.functional.pad is torch.nn.functional.pad
    with pytest.raises(AttributeError, match="module 'torch' has no attribute 'nothing'"):
        _ = lazy.torch.nothing  # type: ignore[attr-defined]


def test_the_networks_and_units_import_no_compiler() -> None:
    code = "import sys, omniavatar.units, omniavatar.models.wan_dit; print('torch._dynamo' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False", "torch's compiler, which takes two seconds to import"
