"""`omni plugins`: what is installed, and a package to begin a new one with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from omniavatar.cli import Commands

if TYPE_CHECKING:
    from omniavatar.plugins import Plugins


@click.group(cls=Commands)
def plugins() -> None:
    """Look at the installed plugin packages, or begin a new one."""


@plugins.command("list")
@click.pass_obj
def list_plugins(found: Plugins) -> None:
    """Name, version, place, hooks and state of every plugin package."""
    found.catalog()  # its faults and those of the tables are shown as well
    found.registry()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("plugin", "version", "source", "hooks", "state"):
        table.add_column(column, overflow="fold")
    for entry in found.describe():
        state = "active" if entry.is_active else "left out"
        reasons = f"[red]{state}: {escape('; '.join(entry.faults))}[/]" if entry.faults else state
        table.add_row(escape(entry.name), entry.version, escape(entry.source), ", ".join(entry.hooks), reasons)
    Console().print(table)


@plugins.command()
@click.argument("name")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.pass_obj
def new(found: Plugins, name: str, folder: Path | None) -> None:
    """Write a package with a unit called NAME into FOLDER (default: omniavatar-NAME here).

    It installs with pip and passes its tests; from there on it is yours.
    """
    from omniavatar.cli.new_plugin import check_name, write_package

    catalog = found.catalog()
    roles = (role for unit in catalog.units.values() for role in (*unit.roles, *unit.optional_roles))
    taken = {**dict.fromkeys(roles, "role of models"), **dict.fromkeys(found.entries, "plugin package")}
    check_name(name, {**taken, **dict.fromkeys(catalog.names, "unit or preset")})
    folder = folder or Path(f"omniavatar-{name}")
    write_package(name, folder)
    click.echo(f"wrote {folder}; go on with:")
    for command in (
        ("pip", "install", "--editable", str(folder) if folder.is_absolute() else f"./{folder}"),
        ("omni", "run", "--units", f"default+{name}", f"--{name}.strength", "0.5"),
        ("pytest", str(folder)),
    ):
        click.echo(f"  {shlex.join(command)}")
