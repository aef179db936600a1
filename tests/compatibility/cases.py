"""Which videos are tried: a pair of units in one plan, a preset, and what is said where no plan has both units."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from itertools import chain, combinations, product
from typing import Any

from omniavatar import builtin
from omniavatar.engine.plan import PREVIOUS, Catalog, build_plan, check_together, made_by, parse
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError
from tests.compatibility.scenarios import SCENARIOS, SETTINGS, Change, File, Scenario

UNITS: dict[str, Scenario] = {name: scenario for group in SCENARIOS.values() for name, scenario in group.items()}
FRAMES = 13
"""Two windows; several ranks make only the first one."""
FRAMES_OF_ONE_WINDOW = 9
Pair = tuple[str, str]
"""Two units, in the order of the table of scenarios."""
Settings = Mapping[str, Mapping[str, Any]]


@cache
def catalog() -> Catalog:
    """The units and presets of omniavatar and of its own plugin packages, whatever else is installed."""
    packages: list[Any] = [builtin, *(import_module(f"omniavatar_{name}") for name in SCENARIOS if name != "builtin")]
    presets = chain.from_iterable(getattr(package, "omni_presets", dict)().items() for package in packages)
    return Catalog({unit.name: unit for package in packages for unit in package.omni_units()}, dict(presets))


@dataclass(frozen=True)
class Case:
    """One video: the units of its plan in order, their settings, the inputs, its frames, their side in pixels.

    real: with the VAE that the units ask for and not one that only averages, which is ten times as fast.
    """

    units: tuple[str, ...]
    settings: Settings
    inputs: Mapping[str, Any]
    frames: int
    size: int
    real: bool

    def __str__(self) -> str:
        return "+".join(self.units)

    @property
    def key(self) -> str:
        """The same for cases that make the same video."""
        settings = {name: values for name, values in self.settings.items() if name in self.units}
        return json.dumps([*vars(replace(self, settings=settings)).values()], sort_keys=True, default=repr)

    def changed(self, unit: str, change: Change) -> Case:
        """With other settings of a unit and other inputs."""
        settings = {**self.settings, unit: {**self.settings.get(unit, {}), **change.settings}}
        inputs = {name: value for name, value in {**self.inputs, **change.inputs}.items() if value is not None}
        return replace(self, settings=settings, inputs=inputs)

    def without(self, unit: str, instead: Settings | None = None) -> Case:
        """With the units `instead` in place of one unit."""
        place, instead = self.units.index(unit), instead or {}
        units = (*self.units[:place], *instead, *self.units[place + 1 :])
        return replace(self, units=units, settings={**self.settings, **instead}, inputs=taken(units, self.inputs))


def taken(units: Iterable[str], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that these units take."""
    fields = {name for unit in units for name in catalog().units[unit].Inputs.model_fields}
    return {name: value for name, value in inputs.items() if name in fields}


def pairs() -> list[Pair]:
    """Every two units."""
    return list(combinations(UNITS, 2))


def needs_ranks(units: Iterable[str]) -> bool:
    return any(UNITS[unit].ranks > 1 for unit in units)


def cases(pair: Pair) -> Iterator[Case]:
    """Both scenarios in one plan, without what stands in the way of the two units; first in the plan of the one."""
    seen = set()
    for first, second in (pair, pair[::-1]):
        case = union(first, second)
        if case.key not in seen:
            seen.add(case.key)
            yield case


def union(first: str, second: str) -> Case:
    """The plan of the first unit, the second, and of its plan what is missing and fits."""
    plans = [parse(UNITS[unit].plan, catalog()) for unit in (first, second)]
    chosen: list[str] = []
    for unit in (first, second, *plans[0], *plans[1]):
        if unit not in chosen and not any(clash(unit, other) for other in chosen if {unit, other} != {first, second}):
            chosen.append(unit)
    units = [unit for unit in dict.fromkeys((*plans[0], *plans[1])) if unit in chosen]
    return scene(units, (first, second), {**plans[1], **plans[0]})


def preset_case(name: str) -> Case:
    """A preset with all that its units take, in few steps."""
    written = parse(f"{name}+schedule(steps=2)", catalog())
    return replace(scene(written, written, written), real=True)


def scene(units: Iterable[str], shown: Iterable[str], written: Settings) -> Case:
    """A case that has the inputs and settings of the units that are to be shown; `written` stands in the expression."""
    scenarios = [UNITS[unit] for unit in shown]
    inputs: dict[str, Any] = {"image": File("portrait.png")}
    for scenario in scenarios:
        inputs |= scenario.inputs
    return Case(
        tuple(units),
        merged(SETTINGS, *(scenario.settings for scenario in scenarios), written),
        taken(units, inputs),
        frames=FRAMES_OF_ONE_WINDOW if needs_ranks(units) else FRAMES,
        size=max(UNITS[unit].size for unit in units),
        real="vae-parallel" in units,
    )


def merged(*layers: Settings) -> dict[str, dict[str, Any]]:
    """Settings by unit; later layers are stronger."""
    names = dict.fromkeys(name for layer in layers for name in layer)
    return {name: {key: value for layer in layers for key, value in layer.get(name, {}).items()} for name in names}


# What the plan says -------------------------------------------------------------------------------------------------


def refusal(pair: Pair) -> str | None:
    """Why one of the units, or one that it cannot be without, does not go with the other, or one that that needs."""
    first, second = ([unit, *essentials(unit)] for unit in pair)
    nearest_first = sorted(product(first, second), key=lambda two: (two[0] != pair[0]) + (two[1] != pair[1]))
    return next((reason for one, other in nearest_first if (reason := clash(one, other))), None)


@cache
def essentials(unit: str) -> list[str]:
    """The units of its scenario without which its plan would not stand."""
    plan = list(parse(UNITS[unit].plan, catalog()))
    return [other for other in plan if other != unit and fault([name for name in plan if name != other])]


def fault(units: Iterable[str]) -> str | None:
    """Why a plan of these units is refused."""
    return complaint(lambda: build_plan("+".join(units), catalog()).check_complete())


@cache
def clash(one: str, other: str) -> str | None:
    """Why two units cannot be in any plan together."""
    if one == other:
        return None
    two = [catalog().units[name]() for name in (one, other)]
    made = {value for unit in two for value in made_by(unit)}
    needed = {value.removeprefix(PREVIOUS) for unit in two for value in unit.needs} - made
    rest = type("Rest", (PipelineUnit,), {"name": "the rest of the plan", "provides": tuple(needed)})
    return complaint(lambda: check_together([*two, rest()]))


def complaint(check: Callable[[], object]) -> str | None:
    """What a check says when it fails."""
    try:
        check()
    except PlanError as error:
        return str(error)
    return None
