"""Command-line options that are derived from units: `--INPUT` for their inputs, `--UNIT.SETTING` for their settings.

A unit from a plugin gets its options, their help and their validation without writing any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click
import yaml

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from omniavatar.engine.unit import PipelineUnit


def unit_options(units: Iterable[type[PipelineUnit]]) -> list[click.Option]:
    """The options of these units, each input once."""
    inputs: dict[str, click.Option] = {}
    settings: list[click.Option] = []
    for unit in units:
        for name, info in unit.Inputs.model_fields.items():
            inputs.setdefault(name, input_option(name, info))
        settings += [setting_option(unit.name, name, info) for name, info in unit.Settings.model_fields.items()]
    return [*inputs.values(), *settings]


def input_option(name: str, info: FieldInfo) -> click.Option:
    """`--name VALUE`, with a short form if the field has one."""
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    short = [str(extra["short"])] if "short" in extra else []
    default = "" if info.is_required() or info.default is None else f"  [default: {info.default}]"
    flag = f"--{name.replace('_', '-')}"
    return click.Option([*short, flag, name], metavar=metavar(info), help=f"{info.description or ''}{default}")


def setting_option(unit: str, name: str, info: FieldInfo) -> click.Option:
    """`--unit.setting VALUE`."""
    return click.Option(
        [f"--{unit}.{name.replace('_', '-')}", parameter(unit, name)],
        metavar=metavar(info),
        help=f"{info.description or ''}  [default: {shortened(info.default)}]",
    )


def parameter(unit: str, name: str) -> str:
    """The name under which click keeps a setting."""
    return f"{unit.replace('-', '_')}__{name}"


def metavar(info: FieldInfo) -> str:
    """What kind of value an option takes."""
    for mark in info.metadata:
        if hasattr(mark, "kind"):
            return str(mark.kind).upper()
    name = getattr(info.annotation, "__name__", "value")
    return {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "bool": "true|false", "Path": "PATH"}.get(name, "VALUE")


def shortened(value: Any, limit: int = 40) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def split_values(
    values: Mapping[str, Any], units: Mapping[str, type[PipelineUnit]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What the user gave, as inputs by name and settings by unit; texts become YAML values where the field is not text."""
    inputs: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]] = {}
    for unit_name, unit in units.items():
        for name in unit.Inputs.model_fields:
            if values.get(name) is not None:
                inputs[name] = values[name]
        for name, info in unit.Settings.model_fields.items():
            value = values.get(parameter(unit_name, name))
            if value is not None:
                settings.setdefault(unit_name, {})[name] = value if info.annotation is str else scalar(value)
    return inputs, settings


def scalar(text: str) -> Any:
    """A YAML value, or the text itself."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
