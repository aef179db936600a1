"""Settings of units out of several sources: who wins, and where each value comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omniavatar.engine.unit import UnitSettings

SettingsByUnit = Mapping[str, Mapping[str, Any]]

DEFAULT = "default"
"""The origin of a value that only the unit's field gives."""


class Strength(IntEnum):
    """How strong the sources of settings are, through every door; the weakest first, behind the fields' defaults.

    SUGGESTED is what a unit says of another one.
    """

    SUGGESTED = 0
    PRESET = 1
    CHECKPOINT = 2
    FILE = 3
    PLAN = 4
    EXPLICIT = 5
    OVERRIDE = 6


@dataclass(frozen=True)
class Layer:
    """The settings by unit of one source; `origin` is what it is called, such as "file talk.yaml"."""

    strength: Strength
    origin: str
    settings: SettingsByUnit


@dataclass(frozen=True)
class Setting:
    """A value with where it comes from."""

    value: Any
    strength: Strength
    origin: str


Chosen = Mapping[str, Mapping[str, Setting]]
"""The units that an expression chooses, in order, with the settings that stand in it and in its presets."""


def put(settings: dict[str, Setting], name: str, setting: Setting) -> None:
    """Take a setting, unless there is a stronger one; of two that are as strong the later counts."""
    if name not in settings or setting.strength >= settings[name].strength:
        settings[name] = setting


def without_replaced(settings_class: type[UnitSettings], settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """The settings of a unit without those that a stronger one leaves without a meaning."""
    replaced = {
        other
        for name, setting in settings.items()
        for other in settings_class.replaced(name, setting.value, by_user=setting.strength >= Strength.FILE)
        if other in settings and settings[other].strength < setting.strength
    }
    return {name: setting for name, setting in settings.items() if name not in replaced}


def file_layer(name: object, settings: SettingsByUnit) -> Layer:
    """The settings of a configuration file."""
    return Layer(Strength.FILE, f"file {name}", settings)


def explicit_layer(settings: SettingsByUnit) -> Layer:
    """Settings that are given for one run or one engine: options of the command line, or `settings=`."""
    return Layer(Strength.EXPLICIT, "settings", settings)
