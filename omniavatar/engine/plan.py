"""Plans: from an expression such as `default+teacache(threshold=0.14)-lora` to units in an order that is known to work.

    expression = term (("+" | "-") term)*        term = name [ "(" key=value, ... ")" ]

A name is a unit or a preset; `-` takes a unit out; a unit named twice gets both groups of settings, the later ones win.
A unit that is added takes those out that it replaces; a preset adds none that a unit of the plan replaces.
The order is that of the expression, changed only where a unit needs what a later one provides.

Settings come from several sources; `omniavatar.engine.settings.Strength` says which of them wins.
"""

from __future__ import annotations

import heapq
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

from pydantic import BaseModel, ValidationError

from omniavatar.deprecation import say_once
from omniavatar.engine.settings import (
    DEFAULT,
    Chosen,
    Layer,
    Setting,
    SettingsByUnit,
    Strength,
    explicit_layer,
    put,
    without_replaced,
)
from omniavatar.engine.unit import ALL, InputKind, PipelineUnit, declaration_faults, has_setting
from omniavatar.errors import InputError, PlanError, explain, nearest
from omniavatar.hookspecs import PROJECT
from omniavatar.roles import companion_of
from omniavatar.values import parse_yaml

log = logging.getLogger(__name__)

EXCLUSIVE_HOOKS = ("plan_windows", "noise", "plan_steps", "guide", "advance", "decode_latents")
ANSWERED_HOOKS = {
    "plan_steps": "schedule; add one such as +schedule",
    "guide": "guidance; add a rule such as +guidance",
    "run_blocks": "network; add one such as +transformer",
    "unembed": "network; add one such as +transformer",
    "advance": "solver; add one such as +euler",
}
"""The hooks that some unit must answer, and what the plan lacks if none does."""
KINDS = {
    "plan_steps": "schedules",
    "advance": "solvers",
    "guide": "guidance rules",
    "plan_windows": "ways to cut a video into chunks",
}
"""What units are that answer one of these exclusive hooks."""
SHARED_HOOKS = ("substitute", "predict", "call", "run_blocks", "run_block")
"""First-result hooks that several units may answer, if all but the last leave some calls to the others."""
PREVIOUS = "previous."
DENOISER, AUTOENCODER = "dit", "vae"
"""The roles of the transformer and of what turns frames into latents, where no unit of a plan names them."""
LONGEST = 100
"""Letters of an expression that are shown in an error."""
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
    """Units in the order in which their hooks run.

    origins: by unit and setting where its value comes from: "default", "preset original", "checkpoint NAME",
    "file NAME", "plan", "settings" (options too) or "--hp". Only for plans that were built.
    """

    units: Sequence[PipelineUnit] = field(default_factory=tuple)
    origins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The units' names, in order."""
        return [unit.name for unit in self.units]

    def __str__(self) -> str:
        """A plan expression that makes the same units."""
        return "+".join(map(repr, self.units))

    def __contains__(self, name: object) -> bool:
        return any(unit.name == name for unit in self.units)

    @property
    def experts(self) -> tuple[str, ...]:
        """The roles of the transformers that take turns in denoising; the first is the one that begins."""
        return tuple(dict.fromkeys(role for unit in self.units for role in unit.experts)) or (DENOISER,)

    @property
    def autoencoder(self) -> str:
        """The role of the network whose latents are denoised."""
        return next((unit.autoencoder for unit in self.units if unit.autoencoder), AUTOENCODER)

    def companions(self, role: str) -> list[str]:
        """The roles that networks of this kind have beside the experts, such as vace and vace2."""
        return [companion_of(role, self.experts[0], expert) for expert in self.experts]

    @property
    def required_roles(self) -> list[str]:
        """The roles without a model for which the plan cannot work."""
        return list(dict.fromkeys(role for unit in self.units for role in unit.required_roles()))

    def roles_of(self, unit: PipelineUnit) -> list[str]:
        """The roles that a unit works with if there are models for them, companions of all experts included."""
        beside = [own for role in unit.companions for own in self.companions(role)]
        optional = [role for role in unit.optional_roles if role != ALL]
        return list(dict.fromkeys((*unit.required_roles(), *optional, *beside)))

    @property
    def roles(self) -> list[str]:
        """The roles that some unit works with if there are models for them."""
        return list(dict.fromkeys(role for unit in self.units for role in self.roles_of(unit)))

    def check_complete(self) -> None:
        """Raise PlanError if no unit answers a hook without which no video can be made."""
        for hook, remedy in ANSWERED_HOOKS.items():
            if not any(claims_hook(type(unit), hook) for unit in self.units):
                raise PlanError(f"the plan has no {remedy}{self._meant}")

    @property
    def _meant(self) -> str:
        """What a plan without schedule, guidance and network has probably meant."""
        if any(claims_hook(type(unit), hook) for unit in self.units for hook in ("plan_steps", "guide", "unembed")):
            return ""
        return f"; did you mean '+{'+'.join(self.names)}', which adds to the model's own plan?"

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


def parse(expression: str, catalog: Catalog) -> dict[str, dict[str, Any]]:
    """The units that an expression names, in order, each with its settings, those of presets included.

    Raises PlanError.
    """
    chosen = _read(expression, catalog)
    return {unit: {name: setting.value for name, setting in settings.items()} for unit, settings in chosen.items()}


def choose(expression: str, catalog: Catalog) -> dict[str, dict[str, Setting]]:
    """The units of an expression, with those that they bring, in order, each with its settings under today's names.

    Each setting says where it stands: in the expression itself or in a preset, which is weaker. Raises PlanError.
    """
    written = _read(expression, catalog)
    chosen: dict[str, dict[str, Setting]] = {}
    for unit, values in written.items():
        for name in catalog.units[unit].brings:
            is_missing = name in catalog.units and name not in written and name not in chosen
            if is_missing and in_place_of(name, written, catalog) is None:
                chosen[name] = {}
        chosen[unit] = dict(values)
    for unit, values in chosen.items():
        for name in [name for name in values if name in catalog.units[unit].moved]:
            target, new = moved_to(catalog.units[unit], name)
            taker = target if target in chosen else in_place_of(target, chosen, catalog, setting=new)
            if taker is not None:
                _put_before(chosen[taker], new, values.pop(name))
    return chosen


def _put_before(settings: dict[str, Setting], name: str, setting: Setting) -> None:
    """Take a setting that was there before those that have been taken."""
    if name not in settings or setting.strength > settings[name].strength:
        settings[name] = setting


def _read(expression: str, catalog: Catalog, inside: tuple[str, ...] = ()) -> dict[str, dict[str, Setting]]:
    """The units that an expression names, in order, each with its settings and where they stand.

    inside: the presets that it is the expression of.
    """
    chosen: dict[str, dict[str, Setting]] = {}
    position, sign = 0, "+"
    text = expression.strip()
    if not text:
        raise PlanError("the plan expression is empty; for example: default")
    while True:
        name, position = _read_name(text, position, catalog, chosen if sign == "-" else catalog.names)
        settings, position = _read_settings(text, position)
        _apply(chosen, sign, name, settings, catalog, inside)
        if position == len(text):
            return chosen
        sign = text[position]
        if sign not in "+-":
            raise PlanError(f"plan expression '{cut(text)}': expected '+' or '-' at '{cut(text[position:])}'")
        position += 1


def _apply(
    chosen: dict[str, dict[str, Setting]],
    sign: str,
    name: str,
    settings: dict[str, Any],
    catalog: Catalog,
    inside: tuple[str, ...],
) -> None:
    """Add or take out one term of an expression, or of the preset that it stands in."""
    if name in inside:
        raise PlanError(f"preset '{name}' contains itself: {' > '.join((*inside, name))}")
    is_preset = name in catalog.presets
    if settings and (is_preset or sign == "-"):
        raise PlanError(f"'{name}' takes no settings here; settings belong to a unit that is added")
    strength, origin = (Strength.PRESET, f"preset {inside[-1]}") if inside else (Strength.PLAN, "plan")
    written = {name: {key: Setting(value, strength, origin) for key, value in settings.items()}}
    members = _read(catalog.presets[name], catalog, (*inside, name)) if is_preset else written
    for unit, values in members.items():
        if sign == "+":
            if is_preset and any(unit in catalog.units[other].replaces for other in chosen):
                continue
            for other in catalog.units[unit].replaces:
                _check_unasked(chosen.pop(other, {}), other, unit)
            present = chosen.setdefault(unit, {})
            for key, setting in values.items():
                target, new = moved_to(catalog.units[unit], key)
                if target in chosen:
                    put(chosen[target], new, setting)
                else:
                    put(present, key, setting)
                if (target, new) != (unit, key):
                    tell_of_moved(setting.origin, setting.strength, f"{unit}.{key}", f"{target}.{new}")
        elif chosen.pop(unit, None) is None and not any(unit in catalog.units[one].replaces for one in chosen):
            raise PlanError(f"'-{unit}': the plan has no unit '{unit}' to take out{nearest(unit, chosen)}")


def _check_unasked(settings: Mapping[str, Setting], unit: str, taker: str) -> None:
    """Refuse settings that an expression gives to a unit which another one replaces."""
    written = [f"{unit}.{name}" for name, setting in settings.items() if setting.strength >= Strength.PLAN]
    if written:
        raise PlanError(f"'{taker}' replaces '{unit}', so nothing takes {', '.join(written)}; leave it out")


def _read_name(text: str, position: int, catalog: Catalog, meant: Iterable[str]) -> tuple[str, int]:
    """The longest known name at this position: a hyphen may belong to a name or take a unit out.

    meant: what an unknown name may have meant.
    """
    position = _skip_spaces(text, position)
    match = NAME.match(text, position)
    if match is None:
        raise PlanError(f"plan expression '{cut(text)}': a unit or preset is missing at '{cut(text[position:])}'")
    parts = match.group().split("-")
    for count in range(len(parts), 0, -1):
        name = "-".join(parts[:count])
        now = name_today(name, catalog.units)
        if now in catalog.units or now in catalog.presets:
            if now != name:
                tell_of_moved("plan", Strength.PLAN, name, now)
            return now, _skip_spaces(text, position + len(name))
    unknown = cut(match.group())
    raise PlanError(f"unknown unit or preset '{unknown}'{nearest(unknown, meant)}")


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
            return _settings_of(items), _skip_spaces(text, end + 1)
    raise PlanError(f"plan expression '{cut(text)}': '(' is never closed")


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


def _settings_of(items: Iterable[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for item in filter(None, map(str.strip, items)):
        key, value = _read_setting(item)
        if key in settings:
            raise PlanError(f"setting '{cut(item)}': '{cut(key)}' is given twice")
        settings[key] = value
    return settings


def _read_setting(item: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in item.partition("="))
    if not equals or not key:
        raise PlanError(f"setting '{cut(item)}' is not key=value")
    try:
        return key.replace("-", "_"), parse_yaml(value)
    except ValueError as error:
        raise PlanError(f"setting '{cut(item)}': cannot read the value: {error}") from None


def cut(text: str) -> str:
    """What is shown of a text in an error."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


# Building -----------------------------------------------------------------------------------------------------------


def build_plan(expression: str | Chosen, catalog: Catalog, *layers: SettingsByUnit | Layer) -> Plan:
    """Parse, make the units and order them. Raises PlanError if they do not fit together.

    expression: or what `choose` has read in one. layers: settings by unit; plain mappings are as strong as
    configuration files, the later ones stronger. Checkpoints and files may speak about units that one run leaves out,
    and only checkpoints about units that do not exist.
    """
    chosen = choose(expression, catalog) if isinstance(expression, str) else expression
    for layer in layers:
        if isinstance(layer, Layer) and layer.strength != Strength.CHECKPOINT:
            check_names(layer, catalog)
    named = [layer if isinstance(layer, Layer) else Layer(Strength.FILE, "settings", layer) for layer in layers]
    settings = resolve(chosen, catalog, *named)
    units, origins = [], {}
    for name, found in settings.items():
        unit_class = catalog.units[name]
        check_declarations(unit_class)
        counting = without_replaced(unit_class.Settings, found)
        given = {key: setting.origin for key, setting in counting.items()}
        units.append(make_unit(unit_class, {key: setting.value for key, setting in counting.items()}, given))
        origins[name] = dict.fromkeys(unit_class.Settings.model_fields, DEFAULT) | given
    check_together(units)
    ordered = order(units)
    check_answers(ordered)
    return Plan(tuple(ordered), {unit.name: origins[unit.name] for unit in ordered})


def resolve(chosen: Chosen, catalog: Catalog, *layers: Layer) -> dict[str, dict[str, Setting]]:
    """The settings that count, by unit: of every setting the strongest, of equally strong ones the later.

    What a layer says about an absent unit goes to the unit of the plan that has taken its place, where that has a
    setting of the same name: another schedule takes the steps that a checkpoint wants of ours. Raises PlanError if
    nothing takes an override; for weaker layers this is a warning.
    """
    settings = {unit: dict(written) for unit, written in chosen.items()}
    for unit in chosen:
        for target, values in catalog.units[unit].suggests.items():
            for name, value in values.items() if target in settings else ():
                put(settings[target], name, Setting(value, Strength.SUGGESTED, f"unit {unit}"))
    for layer in sorted(layers, key=lambda layer: layer.strength):
        said = current_names(layer, catalog.units, chosen)
        for unit in sorted(said, key=lambda unit: unit in chosen):  # a unit's own settings come last
            left = []
            for name, value in said[unit].items():
                taker = unit if unit in chosen else in_place_of(unit, chosen, catalog, setting=name)
                if taker is not None:
                    put(settings[taker], name, Setting(value, layer.strength, layer.origin))
                else:
                    left.append(name)
            if left:
                _tell_of_left(layer, unit, left, in_place_of(unit, chosen, catalog))
    return settings


def current_names(
    layer: Layer, units: Mapping[str, type[PipelineUnit]], chosen: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """What a layer says, by unit, with settings that have moved under the names that they have today.

    Of several names of one setting the last counts, but none of an absent unit beside one of a chosen unit.
    """
    settings: dict[str, dict[str, Any]] = {}
    for unit, values in layer.settings.items():
        now = name_today(unit, units)
        if now != unit:
            tell_of_moved(layer.origin, layer.strength, unit, now)
        settings[now] = {**settings.get(now, {}), **values}
    places = [
        (unit, name, *(moved_to(units[unit], name) if unit in units else (unit, name)))
        for unit, values in settings.items()
        for name in values
    ]
    by_chosen = {place[2:] for place in places if place[0] in chosen and place[0] != place[2]}
    said: dict[str, dict[str, Any]] = {unit: {} for unit, values in settings.items() if not values}
    for unit, name, target, new in places:
        if (target, new) != (unit, name):
            tell_of_moved(layer.origin, layer.strength, f"{unit}.{name}", f"{target}.{new}")
        if target == unit or unit in chosen or (target, new) not in by_chosen:
            said.setdefault(target, {})[new] = settings[unit][name]
    return said


def name_today(unit: str, units: Mapping[str, type[PipelineUnit]]) -> str:
    """What a unit is called today."""
    return unit if unit in units else next((name for name, one in units.items() if unit in one.former_names), unit)


def moved_to(unit_class: type[PipelineUnit], name: str) -> tuple[str, str]:
    """The unit and the name that a setting of this unit has today."""
    unit, _, new = unit_class.moved.get(name, f"{unit_class.name}.{name}").partition(".")
    return unit, new


def tell_of_moved(origin: str, strength: Strength, old: str, new: str) -> None:
    """Say once that a setting or unit has another name today; to those who cannot change it, only if they ask."""
    say_once(origin, old, new, to_user=strength >= Strength.FILE)


def _tell_of_left(layer: Layer, unit: str, names: Sequence[str], taker: str | None) -> None:
    """Refuse or report settings of an absent unit that no unit of the plan takes."""
    listed = ", ".join(f"{unit}.{name}" for name in names)
    reason = f"unit '{unit}' is not in the plan"
    if taker is not None:
        reason += f", and '{taker}' in its place has no such setting"
    if layer.strength == Strength.OVERRIDE:
        raise PlanError(f"{layer.origin}: nothing takes {listed}: {reason}; leave it out, or add the unit")
    if taker is not None:
        log.warning("%s: %s has no effect: %s", layer.origin, listed, reason)


def in_place_of(unit: str, chosen: Iterable[str], catalog: Catalog, *, setting: str | None = None) -> str | None:
    """The unit of the plan that replaces this absent one, or answers an exclusive hook as it would.

    setting: the name of one that it has to have.
    """
    if unit not in catalog.units:
        return None
    hooks = [hook for hook in EXCLUSIVE_HOOKS if claims_hook(catalog.units[unit], hook)]
    others = (
        name
        for name in chosen
        if unit in catalog.units[name].replaces or any(claims_hook(catalog.units[name], hook) for hook in hooks)
    )
    return next((name for name in others if setting is None or has_setting(catalog.units[name], setting)), None)


def check_names(layer: Layer, catalog: Catalog) -> None:
    """Raise PlanError for settings of a unit that does not exist, and for settings that a unit does not have."""
    for unit, values in current_names(layer, catalog.units).items():
        if unit not in catalog.units:
            raise PlanError(f"{layer.origin}: unknown unit '{unit}'{nearest(str(unit), catalog.units)}")
        try:
            check_fields(catalog.units[unit], values)
        except PlanError as error:
            raise PlanError(f"{layer.origin}: {error}") from None


def check_present(settings: SettingsByUnit, chosen: Chosen, catalog: Catalog) -> None:
    """Raise PlanError for explicit settings of a unit that exists and is not in the plan."""
    for unit in current_names(explicit_layer(settings), catalog.units, chosen):
        if unit in catalog.units and unit not in chosen:
            taker = in_place_of(unit, chosen, catalog)
            hint = f"'{taker}' is in its place" if taker else f"add it, such as with '+{unit}'"
            raise PlanError(f"settings: unit '{unit}' is not in the plan; {hint}")


def with_settings(plan: Plan, changes: SettingsByUnit) -> Plan:
    """The plan with other settings of some units, for one run of an engine that is loaded.

    Raises PlanError for a unit that it does not have, and for one that has used its settings in `setup`.
    """
    if not isinstance(changes, Mapping):
        raise PlanError(f"settings are a mapping of unit names to mappings, not {type(changes).__name__}")
    for name, values in changes.items():
        if not isinstance(values, Mapping):
            raise PlanError(f"settings: those of '{name}' are {values!r} and not a mapping of names to values")
    changes = current_names(explicit_layer(changes), {unit.name: type(unit) for unit in plan.units}, plan.names)
    for name in changes:
        if name not in plan:
            raise PlanError(f"settings: unit '{name}' is not in the plan{nearest(name, plan.names)}")
    units = tuple(_changed(unit, changes.get(unit.name) or {}) for unit in plan.units)
    given = {name: dict.fromkeys(values, "settings") for name, values in changes.items()}
    origins = {name: {**plan.origins.get(name, {}), **given.get(name, {})} for name in plan.names}
    return replace(plan, units=units, origins=origins)


def _changed(unit: PipelineUnit, values: Mapping[str, Any]) -> PipelineUnit:
    """The unit with some settings changed, or itself if that makes no difference."""
    if not values:
        return unit
    before = unit.settings.model_dump(exclude_unset=True)
    for name, value in values.items():
        for other in type(unit).Settings.replaced(name, value, by_user=True):
            before.pop(other, None)
    changed = make_unit(type(unit), {**before, **values})
    if changed.settings == unit.settings:
        return unit
    if implements(type(unit), "setup"):
        raise PlanError(
            f"unit '{unit.name}' used its settings when the engine was set up; open another engine for other ones"
        )
    return changed


def make_unit(
    unit_class: type[PipelineUnit], settings: Mapping[str, Any], origins: Mapping[str, str] | None = None
) -> PipelineUnit:
    """The unit with these settings.

    origins: where each is from, to be said if it is wrong.
    Raises PlanError that names the unit and what its class says wrongly, or the setting and what it accepts.
    """
    check_declarations(unit_class)
    check_fields(unit_class, settings, origins)
    try:
        return unit_class(**settings)
    except ValidationError as error:
        setting = next(iter(error.errors()[0]["loc"]), "")
        raise PlanError(f"unit '{unit_class.name}': {explain(error)}{_source(origins, setting)}") from None


def check_declarations(unit_class: type[PipelineUnit]) -> None:
    """Raise PlanError for what a class says wrongly about itself."""
    fault = next(declaration_faults(unit_class), "")
    if fault:
        raise PlanError(f"unit '{unit_class.name}': {fault}")


def check_fields(
    unit_class: type[PipelineUnit], names: Iterable[str], origins: Mapping[str, str] | None = None
) -> None:
    """Raise PlanError for a setting that the unit does not have."""
    fields = unit_class.Settings.model_fields
    for name in names:
        if name not in fields:
            hint = nearest(str(name), fields) if fields else "; it has no settings"
            if name in unit_class.moved:
                hint = f": it is {unit_class.moved[name]} now, and the plan has no unit that takes it"
            raise PlanError(f"unit '{unit_class.name}' has no setting '{name}'{hint}{_source(origins, name)}")


def _source(origins: Mapping[str, str] | None, setting: Any) -> str:
    """Where a wrong setting is from, for those that the user does not have before his eyes."""
    origin = (origins or {}).get(setting, "plan")
    return "" if origin in ("plan", "settings") else f" (from {origin})"


def check_together(units: Sequence[PipelineUnit]) -> None:
    """Refuse conflicts, values that nobody or two units make, and two claims on one thing or exclusive hook."""
    check_conflicts(units)
    makers: dict[str, str] = {}
    claims: dict[str, str] = {}
    for unit in units:
        for value in made_by(unit):
            if (maker := makers.setdefault(value, unit.name)) != unit.name:
                raise PlanError(
                    f"units '{maker}' and '{unit.name}' both provide '{value}'; leave one out with -{maker}"
                )
        hooks = [hook for hook in EXCLUSIVE_HOOKS if claims_hook(type(unit), hook)]
        for claim in (*hooks, *unit.claims):
            if (other := claims.setdefault(claim, unit.name)) != unit.name:
                both = f"are both {KINDS[claim]}" if claim in KINDS else f"both claim '{claim}'"
                raise PlanError(f"units '{other}' and '{unit.name}' {both}; leave one out with -{other}")
    check_needs(units, makers)
    check_inputs(units)


def check_answers(units: Sequence[PipelineUnit]) -> None:
    """Refuse units, in the order of the plan, whose answer to a first-result hook would never be asked for."""
    for hook in SHARED_HOOKS:
        before: PipelineUnit | None = None
        for unit in sorted(units, key=lambda unit: not answers_first(type(unit), hook)):
            if not answers(type(unit), hook):
                continue
            if before is not None:
                raise PlanError(
                    f"units '{before.name}' and '{unit.name}' both answer '{hook}', and the first, '{before.name}', "
                    f"leaves nothing to the other; leave one out with -{before.name}"
                )
            if hook not in unit.passes_on:
                before = unit


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


def implementations(unit_class: type[PipelineUnit], hook: str) -> list[Mapping[str, Any]]:
    """pluggy's options of each of the unit's methods for a hook."""
    found = hooks_of(unit_class)
    return [options for attribute, options in found.items() if (options["specname"] or attribute) == hook]


def implements(unit_class: type[PipelineUnit], hook: str) -> bool:
    """Whether the unit answers or wraps this hook."""
    return bool(implementations(unit_class, hook))


def claims_hook(unit_class: type[PipelineUnit], hook: str) -> bool:
    """Whether the unit answers this hook itself, rather than wrapping it."""
    return any(not (options["wrapper"] or options["hookwrapper"]) for options in implementations(unit_class, hook))


def answers(unit_class: type[PipelineUnit], hook: str) -> bool:
    """Whether the unit answers this hook before the one whose work it is, which answers last."""
    return any(
        not (options["wrapper"] or options["hookwrapper"] or options["trylast"])
        for options in implementations(unit_class, hook)
    )


def answers_first(unit_class: type[PipelineUnit], hook: str) -> bool:
    """Whether the unit is asked before those that only the order of the plan decides about."""
    return any(options["tryfirst"] for options in implementations(unit_class, hook) if not options["wrapper"])
