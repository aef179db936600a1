"""`omni plugins`: what is installed, and a package to begin a new one with."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from omniavatar.cli import Commands


@click.group(cls=Commands)
def plugins() -> None:
    """Look at the installed plugin packages, or begin a new one."""


@plugins.command("list")
def list_plugins() -> None:
    """Name, version, place, hooks and state of every plugin package."""
    from omniavatar.plugins import discover

    found = discover()
    found.catalog()  # its faults and those of the tables are shown as well
    found.registry()
    table = Table("plugin", "version", "source", "hooks", "state", box=None, pad_edge=False, header_style="bold")
    for entry in found.describe():
        state = "active" if entry.is_active else "left out"
        reasons = f"[red]{state}: {escape('; '.join(entry.faults))}[/]" if entry.faults else state
        table.add_row(escape(entry.name), entry.version, escape(entry.source), ", ".join(entry.hooks), reasons)
    Console().print(table)


@plugins.command()
@click.argument("name")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
def new(name: str, folder: Path | None) -> None:
    """Write a package with a unit called NAME into FOLDER (default: omniavatar-NAME here).

    It installs with pip and passes its tests; from there on it is yours.
    """
    from omniavatar.cli.new_plugin import check_name, write_package
    from omniavatar.plugins import discover

    catalog = discover().catalog()
    check_name(name, taken=catalog.names)
    folder = folder or Path(f"omniavatar-{name}")
    write_package(name, folder)
    click.echo(f"wrote {folder}; go on with:")
    for command in (
        f"pip install --editable {folder if folder.is_absolute() else f'./{folder}'}",
        f"omni run --units default+{name} --{name}.strength 0.5",
        f"pytest {folder}",
    ):
        click.echo(f"  {command}")
