"""Command-line options that are derived from units: `--INPUT` for their inputs, `--UNIT.SETTING` for their settings.

A unit from a plugin gets its options, their help and their validation without writing any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from omniavatar.cli.fields import bounds, check_values, default, kind, parse_value
from omniavatar.errors import PlanError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from omniavatar.engine.unit import PipelineUnit

INPUTS = "Inputs"
DEVICE = click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...  [default: cuda if there is one]")
FPS = click.option("--fps", type=int, metavar="INTEGER", help="frames per second  [default: 25]")
"""Options that several commands have."""


class UnitOption(click.Option):
    """An option that comes from a unit; `section` is the heading under which the help shows it."""

    def __init__(self, *arguments: Any, section: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.section = section


def unit_options(units: Iterable[type[PipelineUnit]], reserved: Collection[str]) -> list[UnitOption]:
    """The options of these units, each input once.

    reserved: names of the command's own options, which a unit must not take for an input.
    """
    inputs: dict[str, UnitOption] = {}
    settings: list[UnitOption] = []
    for unit in units:
        for name, info in unit.Inputs.model_fields.items():
            if name in reserved:
                raise PlanError(
                    f"unit '{unit.name}' takes an input '{name}', which is an option of the command itself; "
                    f"leave the unit out with -{unit.name}, and tell its authors"
                )
            inputs.setdefault(name, input_option(name, info))
        settings += [setting_option(unit, name, info) for name, info in unit.Settings.model_fields.items()]
    return [*inputs.values(), *settings]


def input_option(name: str, info: FieldInfo) -> UnitOption:
    """`--name VALUE`, with a short form if the field has one."""
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    short = [str(extra["short"])] if "short" in extra else []
    flag = f"--{name.replace('_', '-')}"
    return UnitOption([*short, flag, name], section=INPUTS, metavar=kind(info), help=described(info))


def setting_option(unit: type[PipelineUnit], name: str, info: FieldInfo) -> UnitOption:
    """`--unit.setting VALUE`."""
    return UnitOption(
        [setting_flag(unit.name, name), parameter(unit.name, name)],
        section=unit.name,
        metavar=kind(info),
        help=described(info),
    )


def setting_flag(unit: str, name: str) -> str:
    """The option of a setting."""
    return f"--{unit}.{name.replace('_', '-')}"


def described(info: FieldInfo) -> str:
    """The field's description, bounds and default."""
    facts = [bounds(info), f"default: {default(info)}" if default(info) else ""]
    shown = "; ".join(filter(None, facts))
    return f"{info.description or ''}{f'  [{shown}]' if shown else ''}"


def parameter(unit: str, name: str) -> str:
    """The name under which click keeps a setting."""
    return f"{unit.replace('-', '_')}__{name}"


def split_values(
    values: Mapping[str, Any], units: Mapping[str, type[PipelineUnit]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What the user gave, as inputs by name and settings by unit. Raises InputError for a setting that cannot be."""
    inputs: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]] = {}
    for unit_name, unit in units.items():
        for name, info in unit.Inputs.model_fields.items():
            if values.get(name) is not None:
                inputs[name] = parse_value(values[name], info)
        for name, info in unit.Settings.model_fields.items():
            value = values.get(parameter(unit_name, name))
            if value is not None:
                settings.setdefault(unit_name, {})[name] = parse_value(value, info)
        flags = {name: setting_flag(unit_name, name) for name in unit.Settings.model_fields}
        check_values(unit.Settings, settings.get(unit_name, {}), flags)
    return inputs, settings
