"""What is in the wheels and source distributions of the engine and of the first-party plugins."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

from omniavatar import __version__

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
LICENCE = (ROOT / "LICENSE").read_text(encoding="utf-8")
each_package = pytest.mark.parametrize("folder", FOLDERS, ids=["omniavatar", *(folder.name for folder in FOLDERS[1:])])


def files_of(builder: SdistBuilder | WheelBuilder) -> set[str]:
    """The paths of a distribution, below its top folder."""
    found: Iterable[object] = builder.recurse_included_files()
    return {str(getattr(file, "distribution_path")) for file in found}  # noqa: B009 (hatchling has no types)


@each_package
def test_every_package_has_the_licence_and_says_so(folder: Path) -> None:
    assert (folder / "LICENSE").read_text(encoding="utf-8") == LICENCE
    metadata = ProjectMetadata(str(folder), PluginManager()).core
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.license_files == ["LICENSE"]


def test_the_licence_is_the_standard_text() -> None:
    assert LICENCE.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert len(LICENCE.split()) == 1581
    assert "END OF TERMS AND CONDITIONS" in LICENCE


@each_package
def test_a_source_distribution_has_no_tests(folder: Path) -> None:
    builder = SdistBuilder(str(folder))
    files = files_of(builder)
    assert {"LICENSE", "README.md"} <= files
    assert any(file.endswith("__init__.py") for file in files)
    assert [file for file in files if file.split("/")[0] in ("tests", ".ci", "conftest.py")] == []


def test_a_source_distribution_of_the_engine_has_all_that_its_wheel_is_made_of() -> None:
    files = files_of(SdistBuilder(str(ROOT)))
    for source in ("registry/tiny.toml", "configs/tiny.yaml", "benchmarks/suites/quick.toml", "docs/plugins.md"):
        assert source in files
    assert "CHANGELOG.md" in files
    size = sum((ROOT / file).stat().st_size for file in files)
    weights = sum(path.stat().st_size for path in ROOT.glob("omniavatar/assets/tiny/**/*") if path.is_file())
    assert size - weights < 6e6


def test_a_wheel_of_the_engine_has_the_data_and_the_pages() -> None:
    forced = WheelBuilder(str(ROOT)).config.force_include
    assert set(forced.values()) == {
        f"omniavatar/data/{name}" for name in ("registry", "configs", "benchmarks/suites", "docs")
    }


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changes = re.findall(r"(?m)^## \[(.+?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert project["version"] == __version__ == changes[0][0]
    assert all(re.fullmatch(r"Unreleased|\d{4}-\d\d-\d\d", date) for _, date in changes)
