"""Who may import whom (docs/architecture.md), read from the source without running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Container, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

import omniavatar
from omniavatar import lazy
from omniavatar.units import BUILTIN

ROOT = Path(omniavatar.__file__).parent
LEAVES = {"deprecation", "errors", "hookspecs", "lazy", "metrics", "resources", "roles", "threads", "values"}
BELOW_CONFIG = {"checkpoints", "errors", "resources", "values"}
# Each folder and loose module of the package and what it may import, itself always included.
ALLOWED: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "models": {"errors", "lazy"},
    "media": {"errors", "lazy"},
    "checkpoints": {"errors", "models", "resources", "roles", "values"},
    "distributed": {"errors", "models"},
    "engine": {"deprecation", "errors", "roles", "values", "hookspecs", "lazy", "models", "media", "distributed"},
    "units": {"errors", "hookspecs", "lazy", "models", "media", "distributed", "engine"},
    "builtin": {"checkpoints", "hookspecs", "resources", "units"},
    "calibration": {"checkpoints", "engine", "errors", "hookspecs", "units"},
    "config": BELOW_CONFIG,
    "original": {"config", "engine", "errors"},
    "config_base": {"config", "errors", "original"},
    "downloading": {"config", "errors"},
    "training": {"checkpoints", "config", "distributed", "engine", "errors", "hookspecs", "media", "units"},
    "plugins": {"builtin", "checkpoints", "engine", "errors", "hookspecs", "metrics", "sdk", "training"},
    "sdk": set(),
    "locating": {"checkpoints", "config", "errors", "plugins"},
    "opening": {
        *("checkpoints", "config", "config_base", "distributed", "engine", "errors", "locating", "original"),
        "plugins",
    },
    "estimate": {"engine", "hookspecs"},
    "bench": {"config", "engine", "errors", "hookspecs", "media", "metrics", "resources", "values"},
    "cli": {
        *("bench", "calibration", "checkpoints", "config", "config_base", "distributed", "downloading", "engine"),
        *("errors", "estimate", "hookspecs", "locating", "media", "opening", "original", "plugins", "resources"),
        *("threads", "training", "values"),
    },
    "testing": {
        *("checkpoints", "cli", "distributed", "engine", "errors", "hookspecs", "models", "plugins", "resources"),
        "units",
    },
    "__init__": set(),
    "__main__": {"cli"},
}
# Imports for type checkers only, which say what is received and cost nothing.
TYPES_ONLY = {
    "__init__": {"engine", "errors", "opening"},
    "bench": {"cli"},
    "builtin": {"engine"},
    "threads": {"engine"},
    "hookspecs": {"checkpoints", "engine", "metrics", "training"},
    "sdk": {
        *("checkpoints", "distributed", "engine", "errors", "hookspecs", "lazy", "media", "metrics", "models"),
        *("training", "units", "values"),
    },
}


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


FILES = sorted(path for path in ROOT.rglob("*.py") if parts(path) != "data")


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


def test_every_folder_and_every_loose_module_has_a_rule() -> None:
    assert {parts(path) for path in FILES} == set(ALLOWED)


def test_the_rules_lead_in_one_direction() -> None:
    TopologicalSorter(ALLOWED).prepare()  # raises CycleError


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Nor in functions, where an import would hide a circle."""
    files = {module_of(path): path for path in FILES}
    TopologicalSorter({name: imported_modules(path, files) - {name} for name, path in files.items()}).prepare()


def module_of(path: Path) -> str:
    """The name by which a file is imported."""
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, known: Container[str]) -> set[str]:
    """The modules of the package that a file imports: of `from a import b`, a.b if there is one, or else a."""
    found = set()
    for name in imports(ast.parse(path.read_text(encoding="utf-8")), types=False):
        module = name if name in known else name.rpartition(".")[0]
        found |= {module} if module in known else set()
    return found


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_imports_no_package_of_plugins(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [
        name for types in (False, True) for name in imports(tree, types=types) if name.startswith("omniavatar_")
    ] == []
