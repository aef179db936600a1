"""`omni units`: what units there are, what one does, and what a plan would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from omniavatar.errors import PlanError, nearest

if TYPE_CHECKING:
    from omniavatar.engine.plan import Catalog
    from omniavatar.engine.unit import PipelineUnit


@click.group()
def units() -> None:
    """List units, show one, or print the plan of an expression."""


def _catalog() -> Catalog:
    from omniavatar.plugins import discover

    return discover().catalog()


@units.command("list")
def list_units() -> None:
    """All units and presets, built-in and from plugins."""
    catalog, console = _catalog(), Console()
    table = Table("unit", "what it does", "needs models", box=None, pad_edge=False)
    for name, unit in catalog.units.items():
        table.add_row(name, unit.summary(), ", ".join((*unit.roles, *(f"[{role}]" for role in unit.optional_roles))))
    console.print(table)
    presets = Table("preset", "is", box=None, pad_edge=False)
    for name, expression in catalog.presets.items():
        presets.add_row(name, expression)
    console.print()
    console.print(presets)


@units.command()
@click.argument("name")
def show(name: str) -> None:
    """What a unit does, its settings and inputs, the values it reads and makes, its hooks."""
    catalog, console = _catalog(), Console()
    if name not in catalog.units:
        raise PlanError(f"unknown unit '{name}'{nearest(name, catalog.units)}")
    unit = catalog.units[name]
    import inspect

    console.print(f"[bold]{name}[/]  {inspect.getdoc(unit)}", highlight=False)
    for title, model in (("settings", unit.Settings), ("inputs", unit.Inputs)):
        if model.model_fields:
            console.print()
            console.print(_fields(title, model.model_fields))
    console.print()
    console.print(_facts(unit))


def _fields(title: str, fields: dict[str, Any]) -> Table:
    table = Table(title, "default", "bounds", "meaning", box=None, pad_edge=False)
    for name, info in fields.items():
        default = "required" if info.is_required() else repr(info.default)
        table.add_row(name, default, bounds(info), info.description or "")
    return table


def bounds(info: Any) -> str:
    """The limits of a pydantic field in words."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [f"{sign} {getattr(rule, key)}" for rule in info.metadata for key, sign in signs.items() if hasattr(rule, key)]
    choices = getattr(info.annotation, "__args__", ()) if "Literal" in str(info.annotation) else ()
    return ", ".join(limits or map(str, choices))


def _facts(unit: type[PipelineUnit]) -> Table:
    from omniavatar.engine.plan import hooks_of

    table = Table(show_header=False, box=None, pad_edge=False)
    facts = {
        "reads": (*unit.needs, *(f"[{name}]" for name in unit.uses)),
        "makes": unit.provides,
        "models": (*unit.roles, *(f"[{role}]" for role in unit.optional_roles)),
        "conflicts": unit.conflicts,
        "hooks": tuple(hooks_of(unit)),
    }
    for title, names in facts.items():
        if names:
            table.add_row(title, ", ".join(name.replace("[", "\\[") for name in names))
    return table


@units.command()
@click.argument("expression", default="default")
def plan(expression: str) -> None:
    """The ordered plan of an EXPRESSION such as default+teacache(threshold=0.2), with hooks and data flow."""
    from omniavatar.engine.plan import build_plan, hooks_of

    made = build_plan(expression, _catalog())
    tree = Tree(f"[bold]{expression}[/]")
    for unit in made.units:
        branch = tree.add(f"[bold]{unit!r}[/]  {unit.summary()}")
        if unit.needs or unit.uses:
            branch.add("reads " + ", ".join((*unit.needs, *(f"\\[{name}]" for name in unit.uses))))
        if unit.provides:
            branch.add("makes " + ", ".join(unit.provides))
        branch.add("hooks " + ", ".join(_hook(name, options) for name, options in hooks_of(type(unit)).items()))
    Console().print(tree, highlight=False)


def _hook(name: str, options: Any) -> str:
    marks = [mark for mark in ("wrapper", "tryfirst", "trylast") if options[mark]]
    return f"{options['specname'] or name}{f' ({marks[0]})' if marks else ''}"
