"""`omni plugins`: what is installed, and a package to begin a new one with."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from omniavatar.cli import Commands
from omniavatar.cli.console import AS_JSON, saying_faults, show, show_json, table_of, tell
from omniavatar.cli.fields import UserPath
from omniavatar.cli.new_plugin import KINDS, check_name, command, write_package

if TYPE_CHECKING:
    from rich.text import Text

    from omniavatar.plugins import Description, Plugins


@click.group(cls=Commands)
def plugins() -> None:
    """Look at the installed plugin packages, or begin a new one."""


@plugins.command("list")
@AS_JSON
@click.pass_obj
def list_plugins(found: Plugins, as_json: bool) -> None:
    """Name, version, API, place, hooks, units, presets and state of every plugin package.

    The API is the number of omniavatar.sdk that a package is written for; one that says none is taken to fit.
    """
    with saying_faults(found) if as_json else nullcontext():
        found.catalog()  # its faults and those of the tables are shown as well
        found.registry()
    entries = found.describe()
    if as_json:
        show_json([asdict(entry) for entry in entries])
        return
    table = table_of("plugin", "version", "API", "source", "hooks", "units", "presets", "state")
    for entry in entries:
        lists = (", ".join(names) for names in (entry.hooks, entry.units, entry.presets))
        table.add_row(entry.name, entry.version, _api(entry), entry.source, *lists, _state(entry))
    show(table)


def _api(entry: Description) -> str:
    """The number that a plugin says it is written for; nothing of one that could not be asked."""
    if entry.api is None:
        return "not said" if entry.is_active else ""
    return str(entry.api)


def _state(entry: Description) -> Text:
    """Whether a plugin is in use, and in red what of it is not."""
    from rich.text import Text

    state = "active" if entry.is_active else "left out"
    return Text(f"{state}: {'; '.join(entry.faults)}", "red") if entry.faults else Text(state)


@plugins.command()
@click.argument("name")
@click.argument("folder", required=False, type=UserPath())
@click.option(
    "--like",
    type=click.Choice(list(KINDS)),
    default=next(iter(KINDS)),
    show_default=True,
    help="what to begin with: a network with a unit, a change of the picture, a guidance rule, a solver, a unit that "
    "acts between the blocks, or a weight format",
)
@click.pass_obj
def new(found: Plugins, name: str, folder: Path | None, like: str) -> None:
    """Write a package with a unit or format called NAME into FOLDER (default: omniavatar-NAME here).

    It installs with pip and passes its tests; from there on it is yours.
    """

    catalog = found.catalog()
    roles = (role for unit in catalog.units.values() for role in (*unit.required_roles(), *unit.optional_roles))
    taken = {**dict.fromkeys(roles, "role of models"), **dict.fromkeys(found.entries, "plugin package")}
    formats = dict.fromkeys((one.name for one in found.formats().formats), "weight format")
    check_name(name, {**taken, **formats, **dict.fromkeys(catalog.names, "unit or preset")}, like)
    folder = folder or Path(f"omniavatar-{name}")
    write_package(name, folder, like)
    commands = (
        ("pip", "install", "--editable", str(folder) if folder.is_absolute() else f"./{folder}"),
        command(name, like),
        ("pytest", str(folder)),
    )
    tell(f"wrote {folder}; go on with:", *(f"  {shlex.join(command)}" for command in commands))
