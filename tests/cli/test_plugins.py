"""`omni plugins`: what is installed, and what plugins bring to the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import omniavatar
from omniavatar import __version__
from omniavatar.resources import asset
from omniavatar.sdk import API
from tests.cli.conftest import Omni, tree

COMMAND = '''
import click
from omniavatar.hookspecs import hookimpl

@hookimpl
def omni_commands(cli):
    @cli.command("wave")
    @click.argument("name")
    def wave(name):
        """Wave to somebody."""
        click.echo(f"waving to {name}")
'''
PICTURES = """
from omniavatar.engine.unit import ImageFile, PipelineUnit, UnitInputs
from omniavatar.hookspecs import hookimpl
from pydantic import Field

class Album(PipelineUnit):
    name = "album"

    class Inputs(UnitInputs):
        pictures: tuple[ImageFile, ...] = Field((), description="pictures that nobody looks at")

    @hookimpl
    def begin_job(self, job): ...

@hookimpl
def omni_units():
    return [Album]
"""
Install = Callable[[str, str], None]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def test_list_shows_the_built_in_package(omni: Omni) -> None:
    outcome = omni("plugins", "list")
    assert (outcome.code, outcome.err) == (0, "")
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("omniavatar.builtin")]
    assert line.split()[1:4] == [__version__, str(API), str(Path(omniavatar.__file__).parent)]
    assert all(hook in line for hook in ("omni_units", "omni_presets", "omni_checkpoints"))
    assert line.split()[-1] == "active"


def test_a_narrow_list_is_complete(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert "…" not in omni("plugins", "list").out


def test_a_plugin_adds_a_command(omni: Omni, install: Install, tmp_path: Path) -> None:
    install("omniavatar_wave", COMMAND)
    assert "Wave to somebody." in omni("--help").out
    assert omni("wave", "Ada").out == "waving to Ada\n"
    line = next(line for line in omni("plugins", "list").out.splitlines() if line.startswith("omniavatar_wave"))
    assert line.split() == ["omniavatar_wave", "1.2", "not", "said", str(tmp_path / "site"), "omni_commands", "active"]


def test_list_says_for_which_api_a_package_is_written(omni: Omni, install: Install) -> None:
    install("omniavatar_wave", f"OMNIAVATAR_API = {API}{COMMAND}")
    (listed,) = [entry for entry in json.loads(omni("plugins", "list", "--json").out) if entry["name"].endswith("wave")]
    assert (listed["api"], listed["is_active"]) == (API, True)
    line = next(line for line in omni("plugins", "list").out.splitlines() if line.startswith("omniavatar_wave"))
    assert line.split()[1:3] == ["1.2", str(API)]


def test_every_picture_of_a_list_is_looked_at_before_anything_is_made(
    omni: Omni, install: Install, folder: Path
) -> None:
    install("omniavatar_album", PICTURES)
    (folder / "garbage.png").write_bytes(b"this is no picture")
    pictures = f"[{asset('demo', 'portrait.png')}, garbage.png]"
    outcome = omni("run", "--units", "default+album", "--pictures", pictures, "-o", "talk.mp4")
    assert outcome.code == 2
    assert outcome.error.startswith("image 'garbage.png' is not a picture")
    assert tree(folder) == {"garbage.png"}
