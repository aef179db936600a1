"""`omni plugins`: what is installed, and what plugins bring to the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import omniavatar
from omniavatar import __version__
from tests.cli.conftest import Omni

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
Install = Callable[[str, str], None]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def test_list_shows_the_built_in_package(omni: Omni) -> None:
    outcome = omni("plugins", "list")
    assert (outcome.code, outcome.err) == (0, "")
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("omniavatar.builtin")]
    assert line.split()[1:3] == [__version__, str(Path(omniavatar.__file__).parent)]
    assert all(hook in line for hook in ("omni_units", "omni_presets", "omni_checkpoints"))
    assert line.split()[-1] == "active"


def test_a_plugin_adds_a_command(omni: Omni, install: Install, tmp_path: Path) -> None:
    install("omniavatar_wave", COMMAND)
    assert "Wave to somebody." in omni("--help").out
    assert omni("wave", "Ada").out == "waving to Ada\n"
    line = next(line for line in omni("plugins", "list").out.splitlines() if line.startswith("omniavatar_wave"))
    assert line.split() == ["omniavatar_wave", "1.2", str(tmp_path / "site"), "omni_commands", "active"]
