"""`omni units`: what units there are, what one does, and what a plan would do."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from omniavatar.cli import Commands
from omniavatar.cli.console import saying_faults
from omniavatar.cli.fields import bounds, default, kind
from omniavatar.cli.outlook import Outlook
from omniavatar.cli.start import EARLY, configuration
from omniavatar.errors import PlanError, nearest

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from omniavatar.engine.plan import Catalog
    from omniavatar.engine.unit import PipelineUnit


OF_PLANS = ("units", "config", "models", "models_dir", "tables")
"""The early options of `omni run` that say which units and which models there are."""


@click.group(cls=Commands)
def units() -> None:
    """List units, show one, or print the plan of an expression."""


def _catalog() -> Catalog:
    from omniavatar.plugins import discover

    plugins = discover()
    with saying_faults(plugins):
        return plugins.catalog()


@units.command("list")
def list_units() -> None:
    """All units and presets, built-in and from plugins."""
    catalog, console = _catalog(), Console()
    table = _table("unit", "what it does", "models")
    for name, unit in catalog.units.items():
        table.add_row(name, escape(unit.summary()), _models(unit))
    console.print(table)
    presets = _table("preset", "is")
    for name, expression in catalog.presets.items():
        presets.add_row(name, escape(expression))
    console.print()
    console.print(presets)


@units.command()
@click.argument("name")
def show(name: str) -> None:
    """What a unit does, its settings and inputs, the values it reads and makes, its hooks."""
    catalog, console = _catalog(), Console(highlight=False)
    if name not in catalog.units:
        raise PlanError(f"unknown unit '{name}'{nearest(name, catalog.units)}")
    unit = catalog.units[name]
    console.print(f"[bold]{name}[/]  {escape(inspect.getdoc(unit) or '')}")
    for title, model in (("setting", unit.Settings), ("input", unit.Inputs)):
        if model.model_fields:
            console.print()
            console.print(_fields(title, model.model_fields))
    console.print()
    console.print(_facts(unit))


@units.command(params=[option for option in EARLY if option.name in OF_PLANS])
@click.argument("expression", required=False)
def plan(expression: str | None, **early: Any) -> None:
    """The ordered plan of an EXPRESSION such as default+teacache(threshold=0.2), with hooks and data flow.

    With the settings that omni run gives these units for the same models, and what units know beforehand: the steps
    that a cache skips, for example.
    """
    config, _ = configuration({**early, "units": expression or early["units"]})
    from omniavatar.plugins import discover

    plugins = discover()
    with saying_faults(plugins):
        catalog = plugins.catalog()
    outlook = Outlook.of(config, plugins, catalog)
    made = outlook.plan
    made.check_complete()
    tree = Tree(f"[bold]{escape(config.units)}[/]")
    for unit in made.units:
        branch = tree.add(f"[bold]{escape(repr(unit))}[/]  {escape(unit.summary())}")
        for title, text in (
            ("reads", _reads(unit)),
            ("makes", ", ".join(unit.provides)),
            ("hooks", _hooks(type(unit))),
            *(("will", escape(line)) for line in outlook.lines(unit)),
        ):
            if text:
                branch.add(f"{title} {text}")
    Console(highlight=False).print(tree)


def _fields(title: str, fields: Mapping[str, FieldInfo]) -> Table:
    table = _table(title, "value", "default", "bounds", "meaning")
    for name, info in fields.items():
        shown = "required" if info.is_required() else default(info)
        table.add_row(name, escape(kind(info)), escape(shown), bounds(info), escape(info.description or ""))
    return table


def _facts(unit: type[PipelineUnit]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    facts = {
        "reads": _reads(unit),
        "makes": ", ".join(unit.provides),
        "models": _models(unit),
        "conflicts": escape("; ".join(f"{what}: {why}" for what, why in unit.conflicts.items())),
        "hooks": _hooks(unit),
    }
    for title, text in facts.items():
        if text:
            table.add_row(title, text)
    return table


def _reads(unit: type[PipelineUnit] | PipelineUnit) -> str:
    return escape(", ".join((*unit.needs, *(f"[{name}]" for name in unit.uses))))


def _models(unit: type[PipelineUnit]) -> str:
    return escape(", ".join((*unit.roles, *(f"[{role}]" for role in unit.optional_roles))))


def _hooks(unit: type[PipelineUnit]) -> str:
    from omniavatar.engine.plan import hooks_of

    return ", ".join(_hook(name, options) for name, options in hooks_of(unit).items())


def _hook(name: str, options: Mapping[str, Any]) -> str:
    marks = [mark for mark in ("wrapper", "tryfirst", "trylast") if options[mark]]
    return f"{options['specname'] or name}{f' ({marks[0]})' if marks else ''}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
