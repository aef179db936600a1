"""`omni plugins`: what is installed."""

from __future__ import annotations

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from omniavatar.cli import Commands


@click.group(cls=Commands)
def plugins() -> None:
    """Look at the installed plugin packages."""


@plugins.command("list")
def list_plugins() -> None:
    """Name, version, hooks and state of every plugin package."""
    from omniavatar.plugins import discover

    found = discover()
    found.catalog()  # its faults are reported as well
    table = Table("plugin", "version", "hooks", "state", box=None, pad_edge=False, header_style="bold")
    for entry in found.describe():
        table.add_row(entry.name, entry.version, ", ".join(entry.hooks), "active")
    for failure in found.failures:
        table.add_row(failure.plugin, "", "", f"[red]left out: {escape(failure.reason)}[/]")
    Console().print(table)
