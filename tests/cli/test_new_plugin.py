"""`omni plugins new`: a package that installs and passes its tests, and names that are refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from omniavatar.cli.new_plugin import KINDS, class_name
from tests.cli.conftest import Omni, tree
from tests.test_sdk import foreign_imports

ROOT = Path(__file__).parents[2]
PACKAGE = {
    "README.md",
    "omniavatar_slow_glow",
    "omniavatar_slow_glow/__init__.py",
    "omniavatar_slow_glow/network.py",
    "omniavatar_slow_glow/slow_glow.toml",
    "omniavatar_slow_glow/unit.py",
    "pyproject.toml",
    "tests",
    "tests/test_slow_glow.py",
}


def run(*command: str | Path, where: Path | None = None, timeout: float = 100, **environment: str) -> str:
    """A command that must succeed: what it prints."""
    arguments, variables = [sys.executable, "-m", *map(str, command)], {**os.environ, **environment}
    done = subprocess.run(
        arguments, cwd=where, env=variables, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("like", KINDS)
def test_a_package_of_each_kind_passes_its_tests(omni: Omni, folder: Path, like: str) -> None:
    assert omni("plugins", "new", "slow-glow", "--like", like).code == 0
    source = folder / "omniavatar-slow-glow"
    path = os.pathsep.join([str(source), *sys.path])
    assert " passed" in run("pytest", "-q", "-n", "0", "-p", "no:cacheprovider", source, PYTHONPATH=path, timeout=300)


@pytest.mark.slow
def test_the_package_installs_and_passes_its_tests(omni: Omni, folder: Path, tmp_path: Path) -> None:
    assert omni("plugins", "new", "slow-glow").code == 0
    source, site = folder / "omniavatar-slow-glow", tmp_path / "site"
    offline = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run("pip", "install", *offline, "--target", site, source)
    assert "3 passed" in run("pytest", "-q", source, PYTHONPATH=str(site))
    listed = run("omniavatar", "plugins", "list", PYTHONPATH=str(site), COLUMNS="300")
    (line,) = [line for line in listed.splitlines() if line.startswith("slow-glow")]
    assert line.split()[:4] == ["slow-glow", "0.1.0", "1", str(site / "omniavatar_slow_glow")]
    small = ("--seconds", "0.24", "--schedule.steps", "1", "-o", str(tmp_path / "glow.mp4"), "--quiet")
    run("omniavatar", "run", "--units", "default+slow-glow(strength=0.5)", *small, PYTHONPATH=str(site))
    assert (tmp_path / "glow.mp4").is_file()


@pytest.mark.parametrize("like", KINDS)
def test_the_package_is_written_in_our_style(omni: Omni, folder: Path, like: str) -> None:
    assert omni("plugins", "new", "slow-glow", "--like", like).code == 0
    for command in (("check",), ("format", "--check")):
        run("ruff", *command, "--config", ROOT / "pyproject.toml", where=folder / "omniavatar-slow-glow")


@pytest.mark.parametrize("like", KINDS)
def test_the_package_imports_what_plugins_may_import(omni: Omni, folder: Path, like: str) -> None:
    assert omni("plugins", "new", "slow-glow", "--like", like).code == 0
    source = folder / "omniavatar-slow-glow"
    for path in source.rglob("*.py"):
        is_test = path.parent.name == "tests"
        assert foreign_imports(path.read_text(encoding="utf-8"), for_tests=is_test) == [], path
    assert "OMNIAVATAR_API = 1\n" in (source / "omniavatar_slow_glow" / "__init__.py").read_text()
    readme = (source / "README.md").read_text()
    modules = {str(path.relative_to(source)) for path in source.rglob("*") if path.suffix in (".py", ".toml")}
    explained = set(re.findall(r"(?m)^\| `(\S+)` \|", readme))
    assert explained == modules - {"pyproject.toml"}


def test_it_says_what_to_do_next(omni: Omni, folder: Path) -> None:
    outcome = omni("plugins", "new", "slow-glow", "here")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "wrote here; go on with:",
        "  pip install --editable ./here",
        "  omni run --units default+slow-glow",
        "  pytest here",
    ]
    assert tree(folder / "here") == PACKAGE
    assert "$" not in "".join(path.read_text() for path in (folder / "here").rglob("*") if path.is_file())


def test_what_to_do_next_can_be_pasted(omni: Omni) -> None:
    printed = omni("plugins", "new", "slow-glow", "my plugins/glow").out
    assert "  pip install --editable './my plugins/glow'\n" in printed
    assert "  pytest 'my plugins/glow'\n" in printed


def test_a_kind_that_there_is_not_is_refused(omni: Omni, folder: Path) -> None:
    outcome = omni("plugins", "new", "slow-glow", "--like", "samplr")
    assert outcome.code == 2
    assert "'sampler'" in outcome.error
    assert tree(folder) == set()


def test_what_is_no_class_of_one_kind_may_be_one_of_another(omni: Omni) -> None:
    assert omni("plugins", "new", "tint", "--like", "sampler").code == 0


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("SlowGlow", "'SlowGlow' is no name for a unit; use lower-case letters, digits and single hyphens, such as "),
        ("slow_glow", "such as 'slow-glow'"),
        ("slow glow", "such as 'slow-glow'"),
        ("slow--glow", "such as 'slow-glow'"),
        ("../glow", "such as 'glow'"),
        ("2-fast", "such as 'fast'"),
        ("glow-", "such as 'glow'"),
        ("äö", "such as 'slow-motion'"),
        ("", "such as 'slow-motion'"),
        ("none", "a class 'None' cannot be; choose another name than 'none'"),
        ("window", "a class 'Window' cannot be; choose another name than 'window'"),
        ("frames", "a class 'Frames' cannot be; choose another name than 'frames'"),
        ("pipeline-unit", "a class 'PipelineUnit' cannot be; choose another name than 'pipeline-unit'"),
        ("pickle", "'pickle' is a weight format already; choose another name"),
        ("tint", "a class 'Tint' cannot be; choose another name than 'tint'"),
        ("teacache", "'teacache' is a unit or preset already; choose another name"),
        ("vae", "'vae' is a role of models already; choose another name"),
        ("fun", "'fun' is a plugin package already; choose another name"),
        ("x" * 300, f"the name '{'x' * 60}...' has 300 letters; take up to 60"),
        ("default", "'default' is a unit or preset already; choose another name"),
    ],
)
def test_a_bad_name_is_refused(omni: Omni, folder: Path, name: str, error: str) -> None:
    outcome = omni("plugins", "new", name)
    assert outcome.code == 2
    assert error in outcome.error
    assert tree(folder) == set()


def test_nothing_is_overwritten(omni: Omni, folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "file").write_text("")
    for place in ("mine", "file"):
        outcome = omni("plugins", "new", "slow-glow", place)
        assert (outcome.code, outcome.error) == (
            2,
            f"{place} exists already; name another folder, or move it away",
        )
    assert tree(folder) == {"mine", "file"}


def test_a_folder_that_cannot_be_made(omni: Omni, folder: Path) -> None:
    (folder / "file").write_text("")
    assert omni("plugins", "new", "slow-glow", "file/below").error == "file/below cannot be written: Not a directory"


def test_class_names() -> None:
    assert [class_name(name) for name in ("mood", "slow-glow", "a1-b2-c")] == ["Mood", "SlowGlow", "A1B2C"]
