"""Plans: from an expression such as `default+teacache(threshold=0.14)-lora` to units in an order that is known to work.

    expression = term (("+" | "-") term)*        term = name [ "(" key=value, ... ")" ]

A name is a unit or a preset; `-` takes a unit out; a unit named twice gets both groups of settings, the later ones win.
The order is that of the expression, changed only where a unit needs what a later one provides.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from omniavatar.engine.unit import InputKind, PipelineUnit, declaration_faults
from omniavatar.errors import InputError, PlanError, explain, nearest
from omniavatar.hookspecs import PROJECT

SettingsByUnit = Mapping[str, Mapping[str, Any]]

EXCLUSIVE_HOOKS = ("plan_windows", "plan_steps", "guide", "advance", "decode_latents")
ANSWERED_HOOKS = {
    "plan_steps": "a sampler such as euler",
    "guide": "a guidance rule such as guidance",
    "run_blocks": "a network such as transformer",
    "unembed": "a network such as transformer",
    "advance": "a sampler such as euler",
}
"""The hooks that some unit must answer, and what kind of unit does."""
PREVIOUS = "previous."
NAME = re.compile(r"[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Catalog:
    """The units and presets that can be named, built-in and from plugins."""

    units: Mapping[str, type[PipelineUnit]]
    presets: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        return [*self.units, *self.presets]


@dataclass(frozen=True)
class Plan:
    """Units in the order in which their hooks run."""

    units: Sequence[PipelineUnit] = field(default_factory=tuple)

    def __contains__(self, name: object) -> bool:
        return any(unit.name == name for unit in self.units)

    def check_complete(self) -> None:
        """Raise PlanError if no unit answers a hook without which no video can be made."""
        for hook, remedy in ANSWERED_HOOKS.items():
            if not any(claims_hook(type(unit), hook) for unit in self.units):
                raise PlanError(f"no unit of the plan answers '{hook}'; add {remedy}")

    @property
    def names(self) -> list[str]:
        """The units' names, in order."""
        return [unit.name for unit in self.units]

    def __str__(self) -> str:
        """A plan expression that makes the same units."""
        return "+".join(map(repr, self.units))

    @property
    def input_fields(self) -> dict[str, Any]:
        """Every input that the plan takes, by name, with its pydantic field."""
        return {name: info for unit in self.units for name, info in unit.Inputs.model_fields.items()}

    def parse_inputs(self, raw: Mapping[str, Any]) -> dict[str, BaseModel]:
        """Validate raw input values and deal them out to the units. Raises InputError."""
        known = self.input_fields
        for name in raw:
            if name not in known:
                raise InputError(f"no unit of the plan takes an input '{name}'{nearest(name, known)}")
        return {unit.name: _inputs_of(unit, raw) for unit in self.units}


def _inputs_of(unit: PipelineUnit, raw: Mapping[str, Any]) -> BaseModel:
    fields = unit.Inputs.model_fields
    try:
        return unit.Inputs(**{name: value for name, value in raw.items() if name in fields})
    except ValidationError as error:
        raise InputError(f"unit '{unit.name}': {explain(error)}") from None


# Parsing ------------------------------------------------------------------------------------------------------------


def parse(expression: str, catalog: Catalog, _inside: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """The units that an expression names, in order, each with its settings. Raises PlanError."""
    chosen: dict[str, dict[str, Any]] = {}
    position, sign = 0, "+"
    text = expression.strip()
    if not text:
        raise PlanError("the plan expression is empty; for example: default")
    while True:
        name, position = _read_name(text, position, catalog, chosen if sign == "-" else catalog.names)
        settings, position = _read_settings(text, position)
        _apply(chosen, sign, name, settings, catalog, _inside)
        if position == len(text):
            return chosen
        sign = text[position]
        if sign not in "+-":
            raise PlanError(f"plan expression '{text}': expected '+' or '-' at '{text[position:]}'")
        position += 1


def _apply(
    chosen: dict[str, dict[str, Any]],
    sign: str,
    name: str,
    settings: dict[str, Any],
    catalog: Catalog,
    inside: tuple[str, ...],
) -> None:
    """Add or take out one term of an expression."""
    if name in inside:
        raise PlanError(f"preset '{name}' contains itself: {' > '.join((*inside, name))}")
    is_preset = name in catalog.presets
    if settings and (is_preset or sign == "-"):
        raise PlanError(f"'{name}' takes no settings here; settings belong to a unit that is added")
    members = parse(catalog.presets[name], catalog, (*inside, name)) if is_preset else {name: settings}
    for unit, values in members.items():
        if sign == "+":
            chosen.setdefault(unit, {}).update(values)
        elif chosen.pop(unit, None) is None:
            raise PlanError(f"'-{unit}': the plan has no unit '{unit}' to take out{nearest(unit, chosen)}")


def _read_name(text: str, position: int, catalog: Catalog, meant: Iterable[str]) -> tuple[str, int]:
    """The longest known name at this position: a hyphen may belong to a name or take a unit out.

    meant: what an unknown name may have meant.
    """
    position = _skip_spaces(text, position)
    match = NAME.match(text, position)
    if match is None:
        raise PlanError(f"plan expression '{text}': a unit or preset is missing at '{text[position:]}'")
    parts = match.group().split("-")
    for count in range(len(parts), 0, -1):
        name = "-".join(parts[:count])
        if name in catalog.units or name in catalog.presets:
            return name, _skip_spaces(text, position + len(name))
    raise PlanError(f"unknown unit or preset '{match.group()}'{nearest(match.group(), meant)}")


def _skip_spaces(text: str, position: int) -> int:
    while position < len(text) and text[position] == " ":
        position += 1
    return position


def _read_settings(text: str, position: int) -> tuple[dict[str, Any], int]:
    """`(key=value, ...)` at this position, if there is one. Values are YAML scalars or lists."""
    if position == len(text) or text[position] != "(":
        return {}, position
    depth, items, start = 0, [], position + 1
    for end in _outside_quotes(text, position):
        depth += (text[end] in "([{") - (text[end] in ")]}")
        if depth == 0 or (depth == 1 and text[end] == ","):
            items.append(text[start:end])
            start = end + 1
        if depth == 0:
            return dict(_read_setting(item) for item in items if item.strip()), _skip_spaces(text, end + 1)
    raise PlanError(f"plan expression '{text}': '(' is never closed")


def _outside_quotes(text: str, position: int) -> Iterator[int]:
    """The positions from here on that are not inside a quoted value."""
    quote = ""
    for index in range(position, len(text)):
        if quote:
            quote = "" if text[index] == quote else quote
        elif text[index] in "'\"" and text[index - 1] in "=[{:, ":
            quote = text[index]
        else:
            yield index


def _read_setting(item: str) -> tuple[str, Any]:
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise PlanError(f"setting '{item.strip()}' is not key=value")
    try:
        return key.strip().replace("-", "_"), yaml.safe_load(value)
    except yaml.YAMLError:
        raise PlanError(f"setting '{item.strip()}': cannot read the value") from None


# Building -----------------------------------------------------------------------------------------------------------


def build_plan(expression: str, catalog: Catalog, *layers: SettingsByUnit) -> Plan:
    """Parse, make the units and order them. Raises PlanError if they do not fit together.

    layers: settings by unit name, weakest first; those in the expression are stronger than all. Settings of units that
    are not in the plan are left alone, so that a checkpoint or a file can speak about units that one run leaves out.
    """
    chosen = parse(expression, catalog)
    units = []
    for name, settings in chosen.items():
        merged = {key: value for layer in layers for key, value in layer.get(name, {}).items()}
        units.append(make_unit(catalog.units[name], {**merged, **settings}))
    check_together(units)
    return Plan(tuple(order(units)))


def with_settings(plan: Plan, changes: SettingsByUnit) -> Plan:
    """The plan with other settings of some units, for one run of an engine that is loaded.

    Raises PlanError for a unit that it does not have, and for one that has used its settings in `setup`.
    """
    for name, values in changes.items():
        if name not in plan:
            raise PlanError(f"settings for '{name}', which the plan does not have{nearest(name, plan.names)}")
        if not isinstance(values, Mapping):
            raise PlanError(f"settings for '{name}' are {values!r} and not a mapping of names to values")
    return replace(plan, units=tuple(_changed(unit, changes.get(unit.name) or {}) for unit in plan.units))


def _changed(unit: PipelineUnit, values: Mapping[str, Any]) -> PipelineUnit:
    """The unit with some settings changed, or itself if that makes no difference."""
    if not values:
        return unit
    changed = make_unit(type(unit), {**unit.settings.model_dump(exclude_unset=True), **values})
    if changed.settings == unit.settings:
        return unit
    if implements(type(unit), "setup"):
        raise PlanError(
            f"unit '{unit.name}' used its settings when the engine was set up; open another engine for other ones"
        )
    return changed


def make_unit(unit_class: type[PipelineUnit], settings: Mapping[str, Any]) -> PipelineUnit:
    """The unit with these settings.

    Raises PlanError that names the unit and what its class says wrongly, or the setting and what it accepts.
    """
    fault = next(declaration_faults(unit_class), "")
    if fault:
        raise PlanError(f"unit '{unit_class.name}': {fault}")
    fields = unit_class.Settings.model_fields
    for key in settings:
        if key not in fields:
            hint = nearest(key, fields) if fields else "; it has no settings"
            raise PlanError(f"unit '{unit_class.name}' has no setting '{key}'{hint}")
    try:
        return unit_class(**settings)
    except ValidationError as error:
        raise PlanError(f"unit '{unit_class.name}': {explain(error)}") from None


def check_together(units: Sequence[PipelineUnit]) -> None:
    """Refuse conflicts, values that nobody or two units make, and two claims on one exclusive hook."""
    check_conflicts(units)
    makers: dict[str, str] = {}
    claims: dict[str, str] = {}
    for unit in units:
        for value in made_by(unit):
            if (maker := makers.setdefault(value, unit.name)) != unit.name:
                raise PlanError(
                    f"units '{maker}' and '{unit.name}' both provide '{value}'; leave one out with -{maker}"
                )
        for hook in EXCLUSIVE_HOOKS:
            if claims_hook(type(unit), hook) and (other := claims.setdefault(hook, unit.name)) != unit.name:
                raise PlanError(f"units '{other}' and '{unit.name}' both claim '{hook}'; leave one out with -{other}")
    check_needs(units, makers)
    check_inputs(units)


def made_by(unit: PipelineUnit) -> list[str]:
    """The values that a unit makes, not those that it only changes."""
    return [value for value in unit.provides if value not in unit.needs and value not in unit.uses]


def check_conflicts(units: Iterable[PipelineUnit]) -> None:
    """No unit may be, or provide, what another one cannot work with."""
    for unit, other in permutations(units, 2):
        for what, why in unit.conflicts.items():
            if what == other.name or what in other.provides:
                raise PlanError(
                    f"units '{unit.name}' and '{other.name}' cannot work together: {why}; "
                    f"leave one out with -{other.name}"
                )


def check_needs(units: Iterable[PipelineUnit], makers: Mapping[str, str]) -> None:
    """Every needed value must have a maker in the plan."""
    for unit in units:
        for value in unit.needs:
            if value.removeprefix(PREVIOUS) not in makers:
                raise PlanError(f"unit '{unit.name}' needs '{value}', which no unit of the plan provides")


def check_inputs(units: Iterable[PipelineUnit]) -> None:
    """Units may share an input only if they mean the same kind of value by it."""
    seen: dict[str, tuple[str, Any]] = {}
    for unit in units:
        for name, info in unit.Inputs.model_fields.items():
            kind = (info.annotation, [rule for rule in info.metadata if isinstance(rule, InputKind)])
            owner, first = seen.setdefault(name, (unit.name, kind))
            if first != kind:
                raise PlanError(f"units '{owner}' and '{unit.name}' take different kinds of input '{name}'")


def order(units: Sequence[PipelineUnit]) -> list[PipelineUnit]:
    """Sort so that makers come before readers, otherwise as given. Raises PlanError on a cycle."""
    after = {
        index: {other for other in range(len(units)) if other != index and _waits_for(units, index, other)}
        for index in range(len(units))
    }
    ready = [index for index, before in after.items() if not before]
    heapq.heapify(ready)
    ordered: list[PipelineUnit] = []
    while ready:
        done = heapq.heappop(ready)
        ordered.append(units[done])
        del after[done]
        for index, before in after.items():
            if done in before:
                before.remove(done)
                if not before:
                    heapq.heappush(ready, index)
    if after:
        names = ", ".join(f"'{units[index].name}'" for index in after)
        raise PlanError(f"units {names} need each other's values in a circle; leave one out")
    return ordered


def _waits_for(units: Sequence[PipelineUnit], reader: int, maker: int) -> bool:
    """Whether one unit reads what the other provides; of two that change the same value the first listed goes first."""
    unit, other = units[reader], units[maker]
    for value in set(unit.needs).union(unit.uses).intersection(other.provides):
        both_change = value in unit.provides and (value in other.needs or value in other.uses)
        if not both_change or maker < reader:
            return True
    return False


# Looking at units ---------------------------------------------------------------------------------------------------


def hooks_of(unit_class: type[PipelineUnit]) -> dict[str, Mapping[str, Any]]:
    """The hooks that a unit implements, by attribute name, with pluggy's options."""
    found = {}
    for attribute in dir(unit_class):
        options = getattr(getattr(unit_class, attribute), f"{PROJECT}_impl", None)
        if options is not None:
            found[attribute] = options
    return found


def claims_hook(unit_class: type[PipelineUnit], hook: str) -> bool:
    """Whether the unit answers this hook itself, rather than wrapping it."""
    return any(
        (options["specname"] or attribute) == hook and not options["wrapper"] and not options["hookwrapper"]
        for attribute, options in hooks_of(unit_class).items()
    )


def implements(unit_class: type[PipelineUnit], hook: str) -> bool:
    """Whether the unit answers or wraps this hook."""
    return any((options["specname"] or attribute) == hook for attribute, options in hooks_of(unit_class).items())
