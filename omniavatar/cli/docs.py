"""`omni docs`: the documentation of the installed version, on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from omniavatar.cli.console import show, table_of
from omniavatar.errors import InputError, nearest
from omniavatar.resources import data_folder


@click.command()
@click.argument("page", required=False)
def docs(page: str | None) -> None:
    """List the pages of the documentation, or print a PAGE of it.

    As Markdown where stdout is no terminal, so that it can be kept: omni docs plugins > plugins.md.
    """
    found = pages()
    if page is None:
        table = table_of("page", "about", "file")
        for name, path in found.items():
            table.add_row(name, title_of(path), str(path))
        show(table)
        return
    name = page.removeprefix("docs/").removesuffix(".md")
    if name not in found:
        raise InputError(f"no page '{page}' in the documentation{nearest(name, found)}")
    text = found[name].read_text(encoding="utf-8")
    if not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    from rich.markdown import Markdown

    show(Markdown(text))


def pages() -> dict[str, Path]:
    """The pages of the documentation by name: docs/python.md is "python"."""
    return {path.stem: path for path in sorted(data_folder("docs").glob("*.md"))}


def title_of(path: Path) -> str:
    """The first heading of a page."""
    with path.open(encoding="utf-8") as lines:
        return next(lines).removeprefix("# ").strip()
