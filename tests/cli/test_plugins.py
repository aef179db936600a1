"""`omni plugins`, and plugins that bring commands or break."""

from __future__ import annotations

from collections.abc import Callable

import pytest

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
TWICE = """
from omniavatar.hookspecs import hookimpl
from omniavatar.units import Euler

@hookimpl
def omni_units():
    return [Euler]
"""


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_list_shows_the_built_in_package(omni: Omni) -> None:
    outcome = omni("plugins", "list")
    assert (outcome.code, outcome.err) == (0, "")
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("omniavatar.builtin")]
    assert line.split()[1] == __version__
    assert all(hook in line for hook in ("omni_units", "omni_presets", "omni_checkpoints"))


def test_a_plugin_adds_a_command(omni: Omni, install: Callable[[str, str], None]) -> None:
    install("omniavatar_wave", COMMAND)
    assert "Wave to somebody." in omni("--help").out
    assert omni("wave", "Ada").out == "waving to Ada\n"
    line = next(line for line in omni("plugins", "list").out.splitlines() if line.startswith("omniavatar_wave"))
    assert line.split() == ["omniavatar_wave", "1.2", "omni_commands", "active"]


def test_a_plugin_that_cannot_be_imported_is_left_out(omni: Omni, install: Callable[[str, str], None]) -> None:
    install("omniavatar_broken", "import no_such_module_anywhere")
    outcome = omni("plugins", "list")
    assert outcome.code == 0
    reason = "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    assert outcome.err == f"omni: plugin 'omniavatar_broken' is left out: {reason}\n"
    assert f"left out: {reason}" in outcome.out


def test_a_unit_that_exists_already_is_reported_by_run(omni: Omni, install: Callable[[str, str], None]) -> None:
    install("omniavatar_twice", TWICE)
    outcome = omni("run", "--help")
    assert outcome.code == 0
    assert outcome.err == "omni: plugin 'omniavatar_twice': unit 'euler' exists already; it was left out\n"
