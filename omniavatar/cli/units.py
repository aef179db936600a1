"""`omni units`: what units there are, what one does, and what a plan would do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from omniavatar.cli import Commands
from omniavatar.cli.console import AS_JSON, saying_faults, show, show_json, table_of
from omniavatar.cli.fields import bounds, default, kind
from omniavatar.cli.start import EARLY, configuration
from omniavatar.errors import PlanError, nearest

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from rich.table import Table

    from omniavatar.cli.outlook import Outlook
    from omniavatar.engine.plan import Catalog
    from omniavatar.engine.unit import PipelineUnit
    from omniavatar.plugins import Plugins


OF_PLANS = ("units", "config", "models", "models_dir", "search", "tables")
"""The early options of `omni run` that say which units and which models there are."""


@click.group(cls=Commands)
def units() -> None:
    """List units, show one, or print the plan of an expression."""


def _known() -> tuple[Plugins, Catalog]:
    from omniavatar.plugins import discover

    plugins = discover()
    with saying_faults(plugins):
        return plugins, plugins.catalog()


@units.command("list")
@AS_JSON
def list_units(as_json: bool) -> None:
    """All units and presets, and the packages that they are from."""
    plugins, catalog = _known()
    packages = {what: {name: plugins.package_of(by) for name, by in of.items()} for what, of in plugins.owners.items()}
    if as_json:
        show_json(
            {
                "units": [unit_facts(unit, packages["unit"][name]) for name, unit in catalog.units.items()],
                "presets": [
                    {"name": name, "package": packages["preset"][name], "expression": expression}
                    for name, expression in catalog.presets.items()
                ],
            }
        )
        return
    table = table_of("unit", "package", "what it does", "models")
    for name, unit in catalog.units.items():
        table.add_row(name, packages["unit"][name], unit.summary(), _models(unit))
    presets = table_of("preset", "package", "is")
    for name, expression in catalog.presets.items():
        presets.add_row(name, packages["preset"][name], expression)
    show(table, "", presets)


@units.command("show")
@click.argument("name")
@AS_JSON
def show_unit(name: str, as_json: bool) -> None:
    """What a unit does, its settings and inputs, the values it reads and makes, its hooks."""
    plugins, catalog = _known()
    if name not in catalog.units:
        raise PlanError(f"unknown unit '{name}'{nearest(name, catalog.units)}")
    unit, package = catalog.units[name], plugins.package_of(plugins.owners["unit"][name])
    if as_json:
        show_json(unit_facts(unit, package))
        return
    from rich.text import Text

    show(Text.assemble((name, "bold"), f"  {inspect.getdoc(unit) or ''}"))
    for title, model in (("setting", unit.Settings), ("input", unit.Inputs)):
        if model.model_fields:
            show("", _fields(title, model.model_fields))
    show("", _facts(unit, package))


@units.command(params=[option for option in EARLY if option.name in OF_PLANS])
@click.argument("expression", required=False)
@AS_JSON
def plan(expression: str | None, as_json: bool, **early: Any) -> None:
    """The ordered plan of an EXPRESSION such as default+teacache(threshold=0.2), with hooks and data flow.

    With the settings that omni run gives these units for the same models, and what units know beforehand: the steps
    that a cache skips, for example.
    """
    config, _ = configuration({**early, "units": expression or early["units"]})
    from omniavatar.cli.outlook import Outlook

    plugins, catalog = _known()
    outlook = Outlook.of(config, plugins, catalog)
    outlook.plan.check_complete()
    if as_json:
        show_json({"plan": config.units, "units": [planned_facts(unit, outlook) for unit in outlook.plan.units]})
        return
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(config.units, "bold"))
    for unit in outlook.plan.units:
        branch = tree.add(Text.assemble((repr(unit), "bold"), f"  {unit.summary()}"))
        for title, text in (
            ("reads", _reads(unit)),
            ("makes", ", ".join(unit.provides)),
            ("hooks", ", ".join(_hooks(type(unit)))),
            *(("will", line) for line in outlook.lines(unit)),
        ):
            if text:
                branch.add(f"{title} {text}")
    show(tree)


# --- what is shown, as plain data


def unit_facts(unit: type[PipelineUnit], package: str) -> dict[str, Any]:
    """All that a unit says about itself."""
    return {
        "name": unit.name,
        "package": package,
        "summary": unit.summary(),
        "description": inspect.getdoc(unit) or "",
        "settings": field_facts(unit.Settings.model_fields),
        "inputs": field_facts(unit.Inputs.model_fields),
        **flow_facts(unit),
        "roles": list(unit.required_roles()),
        "optional_roles": list(unit.optional_roles),
        "conflicts": dict(unit.conflicts),
        "brings": list(unit.brings),
        "suggests": {name: dict(values) for name, values in unit.suggests.items()},
        "moved": dict(unit.moved),
    }


def field_facts(fields: Mapping[str, FieldInfo]) -> dict[str, dict[str, Any]]:
    """Value, default, bounds and meaning of settings or inputs, as the tables show them."""
    return {
        name: {
            "value": kind(info),
            "required": info.is_required(),
            "default": default(info),
            "bounds": bounds(info),
            "meaning": info.description or "",
        }
        for name, info in fields.items()
    }


def flow_facts(unit: type[PipelineUnit] | PipelineUnit) -> dict[str, list[str]]:
    """The values that a unit reads and makes, and its hooks."""
    unit_class = unit if isinstance(unit, type) else type(unit)
    return {
        "needs": list(unit.needs),
        "uses": list(unit.uses),
        "provides": list(unit.provides),
        "hooks": list(_hooks(unit_class)),
    }


def planned_facts(unit: PipelineUnit, outlook: Outlook) -> dict[str, Any]:
    """A unit of a plan: its settings, the data flow, and what it will do."""
    return {
        "name": unit.name,
        "term": repr(unit),
        "summary": unit.summary(),
        "settings": unit.settings.model_dump(mode="json"),
        **flow_facts(unit),
        "will": list(outlook.lines(unit)),
    }


# --- printing


def _fields(title: str, fields: Mapping[str, FieldInfo]) -> Table:
    table = table_of(title, "value", "default", "bounds", "meaning")
    for name, info in fields.items():
        shown = "required" if info.is_required() else default(info)
        table.add_row(name, kind(info), shown, bounds(info), info.description or "")
    return table


def _facts(unit: type[PipelineUnit], package: str) -> Table:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    facts = {
        "package": package,
        "reads": _reads(unit),
        "makes": ", ".join(unit.provides),
        "models": _models(unit),
        "conflicts": "; ".join(f"{what}: {why}" for what, why in unit.conflicts.items()),
        "brings": ", ".join(unit.brings),
        "suggests": ", ".join(
            f"{other}.{name}={value}" for other, values in unit.suggests.items() for name, value in values.items()
        ),
        "once had": ", ".join(f"{name} (now {place})" for name, place in unit.moved.items()),
        "hooks": ", ".join(_hooks(unit)),
    }
    for title, text in facts.items():
        if text:
            table.add_row(title, text)
    return table


def _reads(unit: type[PipelineUnit] | PipelineUnit) -> str:
    return ", ".join((*unit.needs, *(f"[{name}]" for name in unit.uses)))


def _models(unit: type[PipelineUnit]) -> str:
    return ", ".join((*unit.required_roles(), *(f"[{role}]" for role in unit.optional_roles)))


def _hooks(unit: type[PipelineUnit]) -> Iterator[str]:
    """The hooks that a unit implements, each with how pluggy is to call it."""
    from omniavatar.engine.plan import hooks_of

    for name, options in hooks_of(unit).items():
        marks = [mark for mark in ("wrapper", "tryfirst", "trylast") if options[mark]]
        yield f"{options['specname'] or name}{f' ({marks[0]})' if marks else ''}"
