"""`omniavatar.sdk`: what plugins are written against is there, is documented, costs nothing, and is enough for ours."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from omniavatar import sdk

ROOT = Path(__file__).parents[1]
NAMES = {name: place for names in sdk.GROUPS.values() for name, place in names.items()}
OWN = {"API", "GROUPS", "MEANINGS"}
MODULES = sorted((ROOT / "plugins").glob("*/omniavatar_*/**/*.py"))
PACKAGES = sorted((ROOT / "plugins").glob("*/omniavatar_*/__init__.py"))
FOR_TESTS = "testing.py"
"""Modules of plugins that help other packages' tests, and may use `omniavatar.testing`."""


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists_and_is_documented(name: str) -> None:
    found = getattr(sdk, name)
    if name in sdk.MEANINGS:
        assert sdk.MEANINGS[name]
    else:
        assert inspect.isclass(found) or inspect.isfunction(found), f"MEANINGS has to say what {name} is"
        assert inspect.getdoc(found), f"{name} has no docstring"
        assert "__doc__" in vars(found) or inspect.isfunction(found), f"{name} has only its base's docstring"


def test_type_checkers_see_the_same_names_at_the_same_places() -> None:
    tree = ast.parse(Path(sdk.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            seen[alias.asname or alias.name] = f"{node.module}:{alias.name}" if alias.asname else str(node.module)
    assert seen == NAMES
    assert set(sdk.__all__) == set(NAMES) | OWN
    assert set(sdk.MEANINGS) <= set(NAMES)
    assert sum(map(len, sdk.GROUPS.values())) == len(NAMES), "a name stands in two groups"


def test_importing_it_imports_nothing_heavy() -> None:
    code = """
import sys
from omniavatar.sdk import OmniError, PipelineUnit, UnitSettings, functional, hookimpl, torch
print(sorted({"numpy", "torch", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from omniavatar.sdk import nothing")


def foreign_imports(source: str, *, for_tests: bool = False) -> list[str]:
    """The modules of omniavatar that a source imports and a plugin may not."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = [str(node.module)]
            if names == ["omniavatar"]:
                names = [f"omniavatar.{alias.name}" for alias in node.names if alias.name in submodules()]
        found += [name for name in names if name.startswith("omniavatar.") and not is_allowed(name, for_tests)]
    return found


def submodules() -> set[str]:
    """The modules and folders of the package."""
    return {path.stem for path in Path(sdk.__file__).parent.iterdir()}


def is_allowed(module: str, for_tests: bool) -> bool:
    """Whether a plugin may import a module of omniavatar."""
    is_of_tests = module == "omniavatar.testing" or module.startswith("omniavatar.testing.")
    return module == "omniavatar.sdk" or (for_tests and is_of_tests)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: "/".join(path.parts[-2:]))
def test_our_plugins_import_nothing_else(path: Path) -> None:
    assert foreign_imports(path.read_text(encoding="utf-8"), for_tests=path.name == FOR_TESTS) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from omniavatar.sdk import hookimpl", []),
        ("from omniavatar import OmniError, sdk", []),
        ("import omniavatar_i2v.unit", []),
        ("from omniavatar.engine.unit import PipelineUnit", ["omniavatar.engine.unit"]),
        ("def f():\n    import omniavatar.units", ["omniavatar.units"]),
        ("from omniavatar import hookspecs", ["omniavatar.hookspecs"]),
        ("from omniavatar.testing import tiny", ["omniavatar.testing"]),
    ],
)
def test_the_reader_sees_foreign_imports(source: str, expected: list[str]) -> None:
    assert foreign_imports(source) == expected
    if "testing" in source:
        assert foreign_imports(source, for_tests=True) == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins").glob("*/omniavatar_*/__init__.py")), ids=lambda p: p.parent.name
)
def test_our_plugins_say_for_which_api_they_are_written(path: Path) -> None:
    said: list[Any] = [
        ast.literal_eval(node.value)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OMNIAVATAR_API"
    ]
    assert said == [sdk.API]
