"""What a unit says about itself, in one form: `omni units show` prints it, the page of units in the docs is made of it.

page = UnitPage.of(unit, "omniavatar")
page.name, page.text     # the unit, and what it does in words
page.tables              # its settings and its inputs
page.facts               # what it reads and makes, the models it works with, its hooks, ...
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omniavatar.cli.fields import bounds, default, kind

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from omniavatar.engine.unit import PipelineUnit


@dataclass(frozen=True)
class Fields:
    """The settings or the inputs of a unit: headings, and a row of texts for each."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class UnitPage:
    """A unit in words. facts: by title, those that there are."""

    name: str
    text: str
    tables: tuple[Fields, ...]
    facts: Mapping[str, str]

    @classmethod
    def of(cls, unit: type[PipelineUnit], package: str) -> UnitPage:
        """The page of a unit, which an installed package brings."""
        models = {"setting": unit.Settings.model_fields, "input": unit.Inputs.model_fields}
        tables = tuple(fields(title, found) for title, found in models.items() if found)
        facts = {title: text for title, text in facts_of(unit, package).items() if text}
        return cls(unit.name, inspect.getdoc(unit) or "", tables, facts)


def fields(title: str, found: Mapping[str, FieldInfo]) -> Fields:
    """What `field_facts` says, as texts."""
    rows = (
        (name, facts["value"], "required" if facts["required"] else facts["default"], facts["bounds"], facts["meaning"])
        for name, facts in field_facts(found).items()
    )
    return Fields((title, "value", "default", "bounds", "meaning"), tuple(rows))


def facts_of(unit: type[PipelineUnit], package: str) -> dict[str, str]:
    """The facts about a unit beside its settings, as texts by title; empty ones included."""
    return {
        "package": package,
        "reads": reads(unit),
        "makes": ", ".join(unit.provides),
        "models": models(unit),
        "conflicts": "; ".join(f"{what}: {why}" for what, why in unit.conflicts.items()),
        "brings": ", ".join(unit.brings),
        "replaces": ", ".join(unit.replaces),
        "suggests": ", ".join(
            f"{other}.{name}={value}" for other, values in unit.suggests.items() for name, value in values.items()
        ),
        "once had": ", ".join(f"{name} (now {place})" for name, place in unit.moved.items()),
        "hooks": ", ".join(hooks(unit)),
    }


def reads(unit: type[PipelineUnit] | PipelineUnit) -> str:
    """The values that a unit reads; in brackets those that it reads only if there are any."""
    return ", ".join((*unit.needs, *(f"[{name}]" for name in unit.uses)))


def models(unit: type[PipelineUnit]) -> str:
    """The roles of the networks that a unit works with; in brackets those that it can do without."""
    return ", ".join((*unit.required_roles(), *(f"[{role}]" for role in unit.optional_roles)))


def hooks(unit: type[PipelineUnit]) -> Iterator[str]:
    """The hooks that a unit implements, each with how pluggy is to call it."""
    from omniavatar.engine.plan import hooks_of

    for name, options in hooks_of(unit).items():
        marks = [mark for mark in ("wrapper", "tryfirst", "trylast") if options[mark]]
        yield f"{options['specname'] or name}{f' ({marks[0]})' if marks else ''}"


# --- the same as plain data


def unit_facts(unit: type[PipelineUnit], package: str) -> dict[str, Any]:
    """All that a unit says about itself, as JSON values."""
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
        "replaces": list(unit.replaces),
        "suggests": {name: dict(values) for name, values in unit.suggests.items()},
        "moved": dict(unit.moved),
    }


def field_facts(found: Mapping[str, FieldInfo]) -> dict[str, dict[str, Any]]:
    """Value, default, bounds and meaning of settings or inputs."""
    return {
        name: {
            "value": kind(info),
            "required": info.is_required(),
            "default": default(info),
            "bounds": bounds(info),
            "meaning": info.description or "",
        }
        for name, info in found.items()
    }


def flow_facts(unit: type[PipelineUnit] | PipelineUnit) -> dict[str, list[str]]:
    """The values that a unit reads and makes, and its hooks."""
    return {
        "needs": list(unit.needs),
        "uses": list(unit.uses),
        "provides": list(unit.provides),
        "hooks": list(hooks(unit if isinstance(unit, type) else type(unit))),
    }
