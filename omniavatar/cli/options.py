"""Command-line options that are derived from units: `--INPUT` for their inputs, `--UNIT.SETTING` for their settings.

A unit from a plugin gets its options, their help and their validation without writing any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from omniavatar.cli.fields import bounds, check_values, default, kind, parse_value
from omniavatar.engine.plan import moved_to, tell_of_moved
from omniavatar.engine.settings import Strength
from omniavatar.engine.unit import has_setting
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


def moved_options(
    catalog: Mapping[str, type[PipelineUnit]], units: Mapping[str, type[PipelineUnit]]
) -> list[UnitOption]:
    """Hidden options for the old names of settings of these units, whichever unit of the catalog had them once."""
    options = []
    for unit, name, target, new in moved_settings(catalog, units):
        info = units[target].Settings.model_fields[new]
        names = [setting_flag(unit, name), parameter(unit, name)]
        options.append(UnitOption(names, section=target, metavar=kind(info), hidden=True))
    return options


def moved_settings(
    catalog: Mapping[str, type[PipelineUnit]], units: Mapping[str, type[PipelineUnit]]
) -> Iterator[tuple[str, str, str, str]]:
    """The unit and the name that settings of these units had once, and those of today; of chosen units last."""
    for unit in sorted(catalog, key=lambda unit: unit in units):
        for name in catalog[unit].moved:
            target, new = moved_to(catalog[unit], name)
            if target in units and has_setting(units[target], new):
                yield unit, name, target, new
    for unit, unit_class in units.items():
        for former in unit_class.former_names:
            yield from ((former, name, unit, name) for name in unit_class.Settings.model_fields)


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
    values: Mapping[str, Any],
    units: Mapping[str, type[PipelineUnit]],
    catalog: Mapping[str, type[PipelineUnit]] | None = None,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What the user gave, as inputs by name and settings by unit. Raises InputError for a setting that cannot be.

    catalog: all units, where values may be those of `moved_options`; they count where today's names are not given.
    """
    inputs: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]] = {}
    for unit_name, name, target, new in moved_settings(catalog or {}, units):
        text = values.get(parameter(unit_name, name))
        if text is not None:
            old, info = setting_flag(unit_name, name), units[target].Settings.model_fields[new]
            settings.setdefault(target, {})[new] = parse_value(text, info)
            check_values(units[target].Settings, {new: settings[target][new]}, {new: old})
            tell_of_moved("command line", Strength.EXPLICIT, old, setting_flag(target, new))
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
