"""The command line called in this process, in a folder of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from omniavatar.cli import run_cli
from omniavatar.testing.tiny import FILES, tiny_file

SMALL = (
    *("--size", "32x32", "--seconds", "0.52", "--schedule.steps", "1", "--guidance.scale", "2"),
    *("--fixed-frames.window-frames", "9", "--fixed-frames.overlap", "5"),
)
"""Options that make a demo video of 13 frames in two windows in well under a second."""


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `omni` uses in this process when no model is named, instead of the trained avatar."""
    path = tmp_path_factory.getbasetemp() / "small.yaml"
    path.write_text(f"units: default\nmodels_dir: {tiny_file()}\nmodels: [{', '.join(FILES)}]\n")
    monkeypatch.setattr("omniavatar.opening.DEFAULT_CONFIG", str(path))


@dataclass(frozen=True)
class Outcome:
    """What a call did: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr of a call that failed for the user's reasons; nothing on stdout."""
        lines = self.err.splitlines()
        assert (len(lines), self.out) == (1, ""), self
        assert lines[0].startswith("omni: ")
        return lines[0].removeprefix("omni: ")


Omni = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test, empty."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def omni(folder: Path, capsys: pytest.CaptureFixture[str]) -> Omni:
    """`omni("run", "--quiet")` calls the command line."""

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = run_cli([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`install("my_plugin", source)` makes a module an installed plugin package, found as pip's are."""

    def make(name: str, source: str) -> None:
        site = tmp_path / "site"
        info = site / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[omniavatar]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, name, raising=False)  # that of another test

    return make


def tree(folder: Path) -> set[str]:
    """Everything in a folder, hidden files included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
