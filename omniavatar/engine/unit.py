"""`PipelineUnit`: one feature in one class, with its settings, its inputs, and what it reads and makes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationInfo, field_validator

from omniavatar.values import refuse_bools

if TYPE_CHECKING:
    import numpy as np

    from omniavatar.engine.engine import Models
    from omniavatar.engine.plan import Plan
    from omniavatar.engine.scopes import Window
    from omniavatar.media.clip import Clip
    from omniavatar.media.sound import Samples

    Pixels = np.ndarray
    Sound = Samples
else:
    Pixels = Sound = object  # the validators see to it; pydantic would look at the classes, and so import numpy

ALL = "*"
"""In `optional_roles`, and in `PlacesWeights.host_roles`: every role of the plan."""
WORD = re.compile(r"[A-Za-z][\w./-]*")
"""A text that needs no quotes in a plan expression, unless YAML means something else by it."""


@dataclass(frozen=True)
class InputKind:
    """What a file input holds; shown as the value's name in the command line's help."""

    kind: str


def _image(value: Any, info: ValidationInfo) -> Path | np.ndarray:
    from omniavatar.media.image import image_input

    return image_input(value, _named(info, "image"))


def _audio(value: Any, info: ValidationInfo) -> Path | Samples:
    from omniavatar.media.sound import sound_input

    return sound_input(value, _named(info, "audio"))


def _video(value: Any, info: ValidationInfo) -> Path | Clip:
    from omniavatar.media.clip import video_input

    return video_input(value, _named(info, "video"))


def _named(info: ValidationInfo, kind: str) -> str:
    """What errors call an input: its name in words, of several pictures "image"."""
    name = (info.field_name or kind).replace("_", " ")
    return name.removesuffix("s") if name.endswith(f"{kind}s") else name


ImageFile = Annotated[Path | Pixels, PlainValidator(_image), InputKind("image")]
"""A picture; a unit gets a file that can be read, or pixels (h w 3) uint8. See `media.image.load_image`."""
AudioFile = Annotated[Path | Sound, PlainValidator(_audio), InputKind("audio")]
"""A sound; a unit gets a file that can be read, or `Samples`. See `media.sound.sound_input`."""
VideoFile = Annotated[Path | Any, PlainValidator(_video), InputKind("video")]
"""A video, or a picture instead; a unit gets a file that can be read, or a `Clip`. See `media.clip.video_input`."""


def listed(value: Any) -> Any:
    """An input that may be one or several, as several; for a `BeforeValidator`."""
    return value if isinstance(value, list | tuple) else [value]


class Values(BaseModel):
    """Base of settings and inputs: other names, numbers that are none (nan, inf) and true for 1 are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        return refuse_bools(value, cls.model_fields[str(info.field_name)].annotation)


class UnitSettings(Values):
    """Base of a unit's settings. Give every field a description (with its unit) and bounds; other names are errors."""

    model_config = ConfigDict(validate_default=True)

    @classmethod
    def replaced(cls, name: str, value: Any, *, by_user: bool) -> tuple[str, ...]:
        """Settings that this one leaves without a meaning, so that those of weaker sources do not count beside it.

        A list of noise levels, say, replaces the number of steps that a checkpoint wants. What equally strong sources
        say beside each other is for a validator to refuse. by_user: a user says it, not a unit, preset or checkpoint.
        """
        return ()


class UnitInputs(Values):
    """Base of a unit's inputs: what changes from video to video. The command line makes an option of each."""


SMALL_CONTRACTS = {
    **dict.fromkeys(("keeps", "host_roles", "reads_blocks"), "omniavatar.engine.placing.PlacesWeights"),
    "idle_in_steps": "omniavatar.engine.residency.IdleInSteps",
    **dict.fromkeys(("degrees", "fills_ranks"), "omniavatar.engine.ranks.SpreadsWork"),
    "main_rank_only": "omniavatar.engine.ranks.MainRankOnly",
    **dict.fromkeys(("eases", "smaller"), "omniavatar.engine.saving.SavesMemory"),
    "rehearses": "omniavatar.engine.rehearsing.NotRehearsed",
    "decisive": "omniavatar.engine.rehearsing.ReadsDecisiveWeights",
    "nulls": "omniavatar.engine.conditions.BringsConditions",
    "trains": "omniavatar.engine.conversion.TrainsWeights",
    "record": "omniavatar.engine.manifest.Recorded",
}
"""What a unit may say to one part of the engine alone, and the class that it must be derived from to be heard."""


class PipelineUnit:
    """Base of all units. A subclass implements hooks of `omniavatar.hookspecs.Pipeline`, marked with `@hookimpl`.

    name: as in plan expressions, lower case with hyphens.
    needs: values it reads that another unit must provide; it runs after that unit. "previous.x" is the value of the
        window before: it must be provided, but does not order.
    uses: like needs, but only if some unit of the plan provides it.
    provides: values it stores. A name that is also in needs or uses is changed rather than made.
    conflicts: units, or values that others provide, that must not be in the same plan, each with the reason.
    passes_on: first-result hooks that it answers in some calls only, and leaves to the units behind it in the others.
        Of several units that answer the same one, all but the last must.
    claims: things of an engine of which there is one and which it replaces, such as "attention_kernel"; two units of a
        plan must not claim the same.
    brings: units that come into the plan with it, in front of it, unless another unit answers what they would: a solver
        brings the schedule that it follows.
    replaces: units that leave the plan when this one is added to it, because it does what they do.
    suggests: settings of other units that suit it, by unit; they count where nobody says anything else.
    former_names: what the unit was called once; plans and configurations may call it so.
    moved: settings that it had once, each with "UNIT.SETTING", what is called so today; the old names stay readable.
    roles, optional_roles: models it works with; `ALL` in the latter for one that works with whatever the plan has.
    experts: roles of the transformers that take turns in denoising, the first one first; each step's `expert` is one of
        them. They are needed, and come to the device when they work.
    autoencoder: the role of the network whose latents are denoised, for the unit that decodes them.
    companions: those of its roles of which every expert may have one of its own; see `Engine.companion`.
    exact: it changes what a video costs, not what it shows (up to rounding).
    What one part of the engine alone asks is said by a further base class, such as `PlacesWeights` for offload or
    `SpreadsWork` for sequence-parallel: `SMALL_CONTRACTS` names them.
    The class docstring is the unit's help: one line, then what a user should know.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ()
    conflicts: ClassVar[Mapping[str, str]] = {}
    passes_on: ClassVar[tuple[str, ...]] = ()
    claims: ClassVar[tuple[str, ...]] = ()
    brings: ClassVar[tuple[str, ...]] = ()
    replaces: ClassVar[tuple[str, ...]] = ()
    suggests: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    former_names: ClassVar[tuple[str, ...]] = ()
    moved: ClassVar[Mapping[str, str]] = {}
    roles: ClassVar[tuple[str, ...]] = ()
    optional_roles: ClassVar[tuple[str, ...]] = ()
    experts: ClassVar[tuple[str, ...]] = ()
    companions: ClassVar[tuple[str, ...]] = ()
    autoencoder: ClassVar[str] = ""
    exact: ClassVar[bool] = False

    class Settings(UnitSettings):
        """No settings."""

    class Inputs(UnitInputs):
        """No inputs."""

    settings: Any

    def __init__(self, **settings: Any) -> None:
        self.settings = self.Settings(**settings)

    @classmethod
    def required_roles(cls) -> tuple[str, ...]:
        """The models without which it cannot work."""
        return tuple(dict.fromkeys((*cls.roles, *cls.experts)))

    def check(self, plan: Plan, models: Models) -> None:
        """Raise an OmniError if the unit cannot work in this plan, with these models or its settings for them.

        No network is loaded yet. What depends on the request is refused in the hook `check_request`.
        """

    def forecast(self, window: Window) -> Iterable[str]:
        """Lines on what the unit will do in a window with these steps and networks, for `omni units plan`.

        Nothing has been set up: networks come without their blocks, and no hook but `plan_steps` has run.
        """
        return ()

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(cls) or "").partition("\n")[0]

    def __repr__(self) -> str:
        """The term of a plan expression that makes the same unit."""
        changed = self.settings.model_dump(mode="json", exclude_defaults=True)
        inner = ", ".join(f"{key}={as_term(value)}" for key, value in changed.items())
        return f"{self.name}({inner})" if inner else self.name


def declaration_faults(unit_class: type[PipelineUnit]) -> Iterator[str]:
    """What a class says about itself in another form than `PipelineUnit` does, one line each."""
    names_in_tuples = ("needs", "uses", "provides", "passes_on", "claims", "brings", "replaces", "former_names")
    roles_in_tuples = ("roles", "optional_roles", "experts", "companions")
    yield from names_faults(unit_class, *names_in_tuples, *roles_in_tuples)
    reasons = unit_class.conflicts
    if not isinstance(reasons, Mapping) or not all(isinstance(text, str) for pair in reasons.items() for text in pair):
        yield f"its conflicts are {reasons!r} and not names with reasons, such as {{'audio': 'it has a voice already'}}"
    yield from _faults_about_settings(unit_class)
    yield from _faults_about_contracts(unit_class)
    for attribute, base in (("Settings", UnitSettings), ("Inputs", UnitInputs)):
        fields = getattr(unit_class, attribute)
        if not (isinstance(fields, type) and issubclass(fields, base)):
            yield f"its {attribute} are {fields!r} and no class derived from {base.__name__}"
        elif fields.model_rebuild(raise_errors=False) is False:
            yield f"its {attribute} have a field of a type that does not exist"


def names_faults(unit_class: type, *attributes: str) -> Iterator[str]:
    """Which of the attributes are not names in a tuple, one line each."""
    for attribute in attributes:
        names = getattr(unit_class, attribute)
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            yield f"its {attribute} are {names!r} and not names in a tuple, such as ('frames',)"


def _faults_about_settings(unit_class: type[PipelineUnit]) -> Iterator[str]:
    """What it says of other units' settings, and of those that were its own, in another form, one line each."""
    suggests = unit_class.suggests
    if not isinstance(suggests, Mapping) or not all(isinstance(values, Mapping) for values in suggests.values()):
        yield f"its suggests are {suggests!r} and not settings by unit, such as {{'schedule': {{'steps': 25}}}}"
    moved = unit_class.moved
    if not isinstance(moved, Mapping) or not all(isinstance(to, str) and "." in to for to in moved.values()):
        yield f"its moved are {moved!r} and not names with 'UNIT.SETTING', such as {{'steps': 'schedule.steps'}}"
    else:
        yield from (f"it has moved the setting '{name}' and has it" for name in moved if has_setting(unit_class, name))


def _faults_about_contracts(unit_class: type[PipelineUnit]) -> Iterator[str]:
    """What it says to a part of the engine that does not hear it, or in another form, one line each."""
    bases = {f"{base.__module__}.{base.__qualname__}" for base in unit_class.__mro__}
    for attribute, contract in SMALL_CONTRACTS.items():
        if hasattr(unit_class, attribute) and contract not in bases:
            name = contract.rpartition(".")[2]
            yield f"its {attribute} is never asked for, since it is no {name}; derive it from {contract} as well"
    if hasattr(unit_class, "check_models"):
        yield "its check_models is never called; it is check(plan, models) now"
    for base in unit_class.__mro__:
        if "faults" in vars(base) and f"{base.__module__}.{base.__qualname__}" in SMALL_CONTRACTS.values():
            yield from vars(base)["faults"].__get__(None, unit_class)()


def has_setting(unit_class: type[PipelineUnit], name: str) -> bool:
    """Whether a unit has a setting of this name today."""
    return name in getattr(unit_class.Settings, "model_fields", ())


def as_term(value: Any) -> str:
    """Plain data as a plan expression writes it: YAML in one line."""
    match value:
        case str():
            return value if WORD.fullmatch(value) and yaml.safe_load(value) == value else quoted(value)
        case list():
            return f"[{', '.join(map(as_term, value))}]"
        case dict():
            items = ", ".join(f"{as_term(key)}: {as_term(item)}" for key, item in value.items())
            return f"{{{items}}}"
    return json.dumps(value)


def quoted(text: str) -> str:
    """A double-quoted YAML string in which no other quote occurs."""
    letters = (letter if letter.isprintable() and letter not in '"\\' else f"\\U{ord(letter):08x}" for letter in text)
    return f'"{"".join(letters)}"'
