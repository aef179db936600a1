"""`omni units`: what units there are, what one does, and what a plan would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from omniavatar.cli import Commands
from omniavatar.cli.console import AS_JSON, saying_faults, show, show_json, table_of
from omniavatar.cli.start import EARLY, configuration
from omniavatar.cli.unit_page import UnitPage, flow_facts, hooks, models, reads, unit_facts
from omniavatar.errors import PlanError, nearest

if TYPE_CHECKING:
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
        table.add_row(name, packages["unit"][name], unit.summary(), models(unit))
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

    from omniavatar.cli.listing import pairs

    page = UnitPage.of(unit, package)
    show(Text.assemble((page.name, "bold"), f"  {page.text}"))
    for found in page.tables:
        table = table_of(*found.headings)
        for row in found.rows:
            table.add_row(*row)
        show("", table)
    show("", pairs(page.facts))


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
            ("reads", reads(unit)),
            ("makes", ", ".join(unit.provides)),
            ("hooks", ", ".join(hooks(type(unit)))),
            *(("will", line) for line in outlook.lines(unit)),
        ):
            if text:
                branch.add(f"{title} {text}")
    show(tree)


# --- what is shown, as plain data


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
