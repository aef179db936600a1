"""`check_unit(MyUnit)`: does a unit keep the promises on which the engine and all other units rely?

    def test_contract() -> None:
        check_unit(Motion, networks={"motion_controller": (MotionController, {"freq_dim": 32, "dim": 96})})

`PROMISES` are the checks by name, in the order in which they are made. They run on small networks with random weights
and take five to twenty seconds. The first broken promise raises AssertionError, which says which one, and where.
"""

from __future__ import annotations

import inspect
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import torch
from pydantic import ValidationError

from omniavatar.cli.fields import leaves
from omniavatar.cli.new_plugin import NAME
from omniavatar.cli.run import run
from omniavatar.distributed.world import World
from omniavatar.engine.engine import Engine
from omniavatar.engine.hooks import SPECS, hook_faults
from omniavatar.engine.loop import FRAMES as DECODED
from omniavatar.engine.placing import PlacesWeights
from omniavatar.engine.plan import PREVIOUS, Catalog, Plan, answers, build_plan, claims_hook, hooks_of, parse
from omniavatar.engine.ranks import SpreadsWork
from omniavatar.engine.residency import OUTSIDE_STEPS, IdleInSteps
from omniavatar.engine.settings import explicit_layer
from omniavatar.engine.surround import Around
from omniavatar.engine.unit import ALL, PipelineUnit, declaration_faults
from omniavatar.errors import InputError, OmniError, PlanError, nearest
from omniavatar.hookspecs import PROJECT
from omniavatar.plugins import discover
from omniavatar.testing.stage import (
    FRAMES,
    ONE_WINDOW,
    SETTINGS,
    Backwards,
    Interruption,
    Network,
    OneBatch,
    Player,
    Stage,
    Take,
    difference,
    play_on_ranks,
)
from omniavatar.testing.watch import Access, Watch, WatchedEngine, frozen
from omniavatar.units import BUILTIN

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from omniavatar.engine.scopes import Request

SIZE = (48, 16)
"""Height and width: 3 tokens a frame, 9 a window, which two ranks do not divide."""
ROUNDING = 1e-4
"""How far results may be apart, of their size, where the same sums are made in another order."""
RANKS = 2
ONE_ANSWER = frozenset(name for name, spec in SPECS.items() if getattr(spec, f"{PROJECT}_spec")["firstresult"])
"""Hooks of which the first answer counts."""
SKELETON = {"dit", "vae"}
"""Roles that every engine loads, whoever asks for them."""
QUICK = ("values", "state", "jobs")
"""The promises of `check_plan`; the last one is about the plan as a whole."""


def check_unit(
    unit_class: type[PipelineUnit],
    *,
    plan: str | None = None,
    settings: Mapping[str, Any] | None = None,
    networks: Mapping[str, Network] | None = None,
    inputs: Mapping[str, Any] | None = None,
    size: tuple[int, int] = SIZE,
    skip: Mapping[str, str] | None = None,
) -> None:
    """Raise AssertionError for the first promise that a unit breaks.

    plan: an expression with the unit in it; default: the default plan, without a file, and the unit.
    settings: values for settings of the unit; default: those of its class, or of the plan.
    networks: class and numbers of a network for each further role, or in place of one of the test networks.
    inputs: values for inputs of the plan, so that the unit has something to do; a portrait, a voice and a prompt are
        given anyway. size: height and width of the videos. skip: promises that are not checked, each with the reason.
    """
    skip = skip or {}
    for name, reason in skip.items():
        if name not in PROMISES:
            raise ValueError(f"no promise is called '{name}'{nearest(name, PROMISES)}")
        if not reason.strip():
            raise ValueError(f"say why '{name}' is skipped")
    with TemporaryDirectory() as folder, one_thread(), few_words():
        subject = Subject(unit_class, plan, Stage(Path(folder), networks or {}, inputs or {}, size), settings or {})
        for name, check in PROMISES.items():
            if name not in skip:
                with naming(f"unit '{getattr(unit_class, 'name', unit_class.__name__)}' breaks the promise '{name}'"):
                    check(subject)


def check_plan(
    plan: str,
    *,
    networks: Mapping[str, Network] | None = None,
    inputs: Mapping[str, Any] | None = None,
    size: tuple[int, int] = SIZE,
) -> list[str]:
    """Raise AssertionError for the first of the promises `QUICK` that a unit of a plan breaks; gives their names.

    All units of the plan are looked at while the same few videos are made, so this takes one or two seconds. The other
    arguments are those of `check_unit`.
    """
    catalog = discover().catalog()
    with TemporaryDirectory() as folder, one_thread(), few_words():
        stage = Stage(Path(folder), networks or {}, inputs or {}, size)
        first: Subject | None = None
        names = build_plan(plan, catalog, SETTINGS).names
        for name in names:
            subject = Subject(catalog.units[name], plan, stage, {})
            if first is not None:  # what has been made for another unit is the same for this one
                vars(subject).update(first=first.first, second=first.second)
            for promise in QUICK if first is None else QUICK[:-1]:
                with naming(f"unit '{name}' of '{plan}' breaks the promise '{promise}'"):
                    PROMISES[promise](subject)
            first = first or subject
        return names


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say in front of whatever goes wrong inside what it is about."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error.__cause__
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower on many threads, and sums may come in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def few_words() -> Iterator[None]:
    """Log warnings and errors only: the compiler says hundreds of lines, which pytest shows with a failure.

    Its trace does not ask whether logging is disabled, so its logger is switched off by itself.
    """
    trace, level = logging.getLogger("torch.__trace"), logging.root.manager.disable
    was_off = trace.disabled
    logging.disable(max(level, logging.INFO))
    trace.disabled = True
    try:
        yield
    finally:
        trace.disabled = was_off
        logging.disable(level)


class Subject:
    """A unit with settings of its own, its plan and the stage for it."""

    def __init__(
        self,
        unit_class: type[PipelineUnit],
        expression: str | None,
        stage: Stage,
        settings: Mapping[str, Any],
    ) -> None:
        self.unit_class = unit_class
        self.settings = settings
        self.expression = expression or f"default-write-video+{getattr(unit_class, 'name', '')}"
        self.stage = stage

    @cached_property
    def installed(self) -> Catalog:
        """What is installed, with the unit or without."""
        return discover().catalog()

    @property
    def catalog(self) -> Catalog:
        """What is installed, and the unit."""
        found = self.installed
        return Catalog({**found.units, self.unit_class.name: self.unit_class}, found.presets)

    def plan(self, change: str = "") -> Plan:
        """A plan of new units. Raises PlanError."""
        return build_plan(
            self.expression + change, self.catalog, SETTINGS, explicit_layer({self.unit_class.name: self.settings})
        )

    def unit_of(self, plan: Plan) -> PipelineUnit:
        """The unit in a plan."""
        found = [unit for unit in plan.units if type(unit) is self.unit_class]
        assert found, f"'{self.expression}' has no unit '{self.unit_class.name}'"
        return found[0]

    def player(self, *observers: Any, change: str = "", **options: Any) -> Player:
        """A new engine."""
        plan = self.plan(change)
        plan.check_complete()
        return self.stage.player(plan, *observers, **options)

    def play(self, *observers: Any, change: str = "", frames: int = FRAMES, state: bytes | None = None) -> Take:
        """The video, by a new engine; with a `state` what follows its first window."""
        player = self.player(*observers, change=change)
        return player.play(self.request(player.engine.plan, frames=frames), state)

    def asked(self, change: str, frames: int) -> tuple[Take, set[str]]:
        """The video, and the hooks with one answer for which this unit was asked while it was made."""
        asked: set[str] = set()

        @contextmanager
        def inside(unit: str, hook: str) -> Iterator[None]:
            if unit == self.unit_class.name and answers(self.unit_class, hook):
                asked.add(hook)
            yield

        player = self.player(change=change)
        with player.engine.instrumented(Around(inside, ONE_ANSWER)):
            return player.play(self.request(player.engine.plan, frames=frames)), asked

    @cached_property
    def asked_alone(self) -> set[str]:
        """The hooks with one answer for which the unit is asked in its own plan."""
        return self.asked("", ONE_WINDOW)[1]

    def request(self, plan: Plan, *, frames: int = FRAMES) -> Request:
        """The video that all checks begin with."""
        return self.stage.request(plan, frames=frames, **self.stage.inputs)

    def other(self, plan: Plan) -> Request:
        """Another video: one window, another seed and prompt, without the inputs of the check that may be left out."""
        fields = plan.input_fields
        needed = {name: value for name, value in self.stage.inputs.items() if fields[name].is_required()}
        return self.stage.request(plan, frames=ONE_WINDOW, seed=2, **{**needed, "prompt": "a quiet lake"})

    @cached_property
    def first(self) -> tuple[Take, Watch]:
        """The first video, and what the units did for it."""
        watch = Watch()
        player = self.player(make=partial(WatchedEngine, watch))
        with watch.watching(player.engine):
            return player.play(self.request(player.engine.plan)), watch

    @property
    def take(self) -> Take:
        """The first video."""
        return self.first[0]

    @cached_property
    def second(self) -> Again:
        """The same video by another engine, and the attributes of the units before and after it."""
        player = self.player()
        units = player.engine.plan.units
        before = {type(unit): picture(unit) for unit in units}
        take = player.play(self.request(player.engine.plan))
        return Again(player, take, before, {type(unit): picture(unit) for unit in units})


@dataclass(frozen=True)
class Again:
    """A video that was made again, by which engine, and the attributes of its units before and after it."""

    player: Player
    take: Take
    before: Mapping[type[PipelineUnit], dict[str, Any]]
    after: Mapping[type[PipelineUnit], dict[str, Any]]


def same(take: Take, expected: Take, what: str, *, tolerance: float = 0.0, first: int = 0) -> None:
    """See that two takes are one video."""
    found = difference(take, expected, tolerance, first)
    assert not found, f"{what}: {found}"


# What its class says --------------------------------------------------------------------------------------------------


def documented(subject: Subject) -> None:
    """It has a name for plan expressions and a docstring of its own: one line, then what a user should know."""
    unit_class = subject.unit_class
    assert issubclass(unit_class, PipelineUnit), "it is not a PipelineUnit"
    name, lines = getattr(unit_class, "name", None), (unit_class.__doc__ or "").splitlines()
    assert isinstance(name, str), "it has no name"
    assert NAME.fullmatch(name), f"its name '{name}' is not of lower-case letters, digits and single hyphens"
    assert "".join(lines[:1]).strip(), "its class has no docstring, which is its help"
    assert not "".join(lines[1:2]).strip(), "the first line of its docstring is not a sentence by itself"


def declared(subject: Subject) -> None:
    """No other unit or preset has its name; what its class says has the form in which `PipelineUnit` says it."""
    unit_class, found = subject.unit_class, subject.installed
    is_taken = found.units.get(unit_class.name, unit_class) is not unit_class or unit_class.name in found.presets
    assert not is_taken, f"something that is installed has the name '{unit_class.name}' already; choose another"
    fault = next(declaration_faults(unit_class), "")
    assert not fault, fault


def settings_are_documented(subject: Subject) -> None:
    """Every setting has a description, every number a bound; unknown and changed settings are errors."""
    settings = subject.unit_class.Settings
    for name, info in settings.model_fields.items():
        assert info.description, f"the setting '{name}' has no description"
        if any(leaf in (int, float) for leaf in leaves(info.annotation)):
            is_bounded = any(hasattr(rule, key) for rule in info.metadata for key in ("ge", "gt", "le", "lt"))
            assert is_bounded, f"the setting '{name}' is a number without bounds; give its Field ge=, gt=, le= or lt="
    for key, value in (("extra", "forbid"), ("frozen", True)):
        assert settings.model_config.get(key) == value, f"its Settings change {key}={value!r} of UnitSettings"


def inputs_are_documented(subject: Subject) -> None:
    """Every input has a description and a name that is free on the command line."""
    inputs = subject.unit_class.Inputs
    for name, info in inputs.model_fields.items():
        assert info.description, f"the input '{name}' has no description"
        assert name not in {option.name for option in run.params}, f"the input '{name}' is an option of omni run itself"


def hooks_fit(subject: Subject) -> None:
    """Its hooks exist, are marked, and take the arguments that they are called with."""
    fault = next(hook_faults(subject.unit_class), "")
    assert not fault, fault
    assert hooks_of(subject.unit_class), "it implements no hook"


# What a video shows --------------------------------------------------------------------------------------------------


def makes_a_video(subject: Subject) -> None:
    """The plan makes a video of finite numbers."""
    try:
        take = subject.take
    except OmniError as error:
        raise AssertionError(
            f"'{subject.expression}' makes no video: {error}; see plan=, networks= and inputs="
        ) from error
    unknown = set(subject.stage.inputs) - set(subject.plan().input_fields)
    assert not unknown, f"no unit of '{subject.expression}' takes an input {sorted(unknown)}"
    for index, tensors in enumerate(take.tensors):
        for name, value in tensors.items():
            assert value.isfinite().all(), f"'{name}' of window {index} has numbers that are not finite"
    for name, result in take.results.items():
        assert pickle.dumps(result), f"the result '{name}' cannot be pickled"


def settings_survive(subject: Subject) -> None:
    """Written as a plan expression, or pickled, it is the same unit again."""
    first = subject.unit_of(subject.plan())
    for unit in [first, *with_other_settings(first)]:
        text = repr(unit)
        try:
            ((name, settings),) = parse(text, subject.catalog).items()
            again = subject.catalog.units[name](**settings)
        except (OmniError, ValidationError, ValueError) as error:
            raise AssertionError(f"its repr {text} is no plan expression: {error}") from error
        assert again.settings == unit.settings, f"the plan expression {text} makes {again.settings!r}"
        assert type(again) is type(unit), f"the plan expression {text} makes a {type(again).__name__}"
    if "<locals>" not in subject.unit_class.__qualname__:
        copy = pickle.loads(pickle.dumps(first))
        assert copy.settings == first.settings, f"pickling makes {copy.settings!r} of {first.settings!r}"


def with_other_settings(unit: PipelineUnit) -> Iterator[PipelineUnit]:
    """The unit with each of its settings changed, as far as values can be guessed."""
    values = dict(unit.settings)
    for name, info in type(unit.settings).model_fields.items():
        for guess in guesses(info, values[name]):
            with suppress(ValidationError):
                yield type(unit)(**{**values, name: guess})


def guesses(info: FieldInfo, value: Any) -> Iterator[Any]:
    """Values that a setting may accept."""
    for leaf in leaves(info.annotation):
        if leaf is bool:
            yield not value
        elif leaf in (int, float):
            limits = [getattr(rule, key) for rule in info.metadata for key in ("ge", "le") if hasattr(rule, key)]
            yield from [*limits, sum(limits) / 2, (value or 0) + 1, 0.0625, 3]
        elif leaf is str:
            yield from ("two words", "1, 'b' (c) \"d\" + e: [é]\n", "no", "")
        elif leaf is Path:
            yield Path("a folder/model-1.0, b")
        elif get_origin(leaf) is Literal:
            yield from get_args(leaf)
        elif isinstance(value, tuple | list):
            yield from (value[::-1], value[:1], value * 2)
    if NoneType in get_args(info.annotation):
        yield None


def values_are_declared(subject: Subject) -> None:
    """It reads what needs, uses and provides name, stores what provides names, and keeps the rest private."""
    unit_class, (_, watch) = subject.unit_class, subject.first
    told = (*unit_class.needs, *unit_class.uses, *unit_class.conflicts)
    known = {*unit_class.provides, *(name.removeprefix(PREVIOUS) for name in told)}
    for access in of_unit(unit_class, watch.reads):
        check_private(unit_class, access, "reads")
        assert "." in access.name or access.name in known, (
            f"its {access.hook} reads '{access.name}', which neither needs nor uses names"
        )
    stored = list(of_unit(unit_class, watch.writes))
    for access in stored:
        check_private(unit_class, access, "stores")
        assert "." in access.name or access.name in unit_class.provides, (
            f"its {access.hook} stores '{access.name}', which provides does not name; "
            f"call it '{unit_class.name}.{access.name}' if it is its own affair"
        )
    by_engine = {DECODED} if claims_hook(unit_class, "decode_latents") else set()
    for name in set(unit_class.provides) - by_engine:
        assert any(access.name == name for access in stored), f"it provides '{name}' and has never stored it"


def check_private(unit_class: type[PipelineUnit], access: Access, verb: str) -> None:
    """Names with a dot belong to the unit, or to one that it is derived from."""
    owner, dot, _ = access.name.partition(".")
    owners = {base.name for base in unit_class.__mro__ if issubclass(base, PipelineUnit) and "name" in vars(base)}
    assert not dot or owner in owners, (
        f"its {access.hook} {verb} '{access.name}', which is private to a unit '{owner}'; its own begin with "
        f"'{unit_class.name}.'"
    )


def of_unit(unit_class: type[PipelineUnit], accesses: Iterable[Access]) -> Iterator[Access]:
    """What this unit has done."""
    return (access for access in accesses if access.unit == unit_class.name)


def roles_are_declared(subject: Subject) -> None:
    """It asks the engine for the models that it names, and for no others."""
    unit_class = subject.unit_class
    plan = subject.plan()
    known = {*plan.roles_of(subject.unit_of(plan))}
    asked = list(of_unit(unit_class, subject.first[1].models))
    idle_in_steps = unit_class.idle_in_steps if issubclass(unit_class, IdleInSteps) else ()
    for access in asked:
        assert access.name in known or ALL in unit_class.optional_roles or hosts(unit_class, access.name), (
            f"its {access.hook} asks for the model '{access.name}', which neither roles nor optional_roles name"
        )
        assert access.hook in (*OUTSIDE_STEPS, "setup") or access.name not in idle_in_steps, (
            f"its {access.hook} asks for the model '{access.name}', which idle_in_steps says it does not do in steps"
        )
    for role in set(unit_class.roles) - SKELETON - {access.name for access in asked}:
        raise AssertionError(f"it names the role '{role}', without which no plan with it works, and has never asked")
    surplus = set(unit_class.host_roles if issubclass(unit_class, PlacesWeights) else ()) - {*known, ALL}
    surplus_idle = set(idle_in_steps) - known
    assert not surplus_idle, f"its idle_in_steps name {sorted(surplus_idle)}, which roles and optional_roles do not"
    assert not surplus, f"its host_roles name {sorted(surplus)}, which roles and optional_roles do not"


def hosts(unit_class: type[PipelineUnit], role: str) -> bool:
    """Whether the network of this role is loaded in host memory for a unit of this class."""
    return issubclass(unit_class, PlacesWeights) and unit_class.hosts(role)


# What must not change a video ----------------------------------------------------------------------------------------


def nothing_stays_on_the_unit(subject: Subject) -> None:
    """After a video the unit is as it was made: what it remembers lies in the scopes."""
    unit_class, again = subject.unit_class, subject.second
    before, after = again.before[unit_class], again.after[unit_class]
    for name in before.keys() | after.keys():
        assert before.get(name) == after.get(name), (
            f"a video has changed its attribute '{name}'; keep that in the job, window, branch or forward.memory"
        )


def picture(unit: PipelineUnit) -> dict[str, Any]:
    """The attributes of a unit and the data among those of its classes."""
    classes = type(unit).__mro__[: type(unit).__mro__.index(PipelineUnit)]
    shared = {name: value for base in reversed(classes) for name, value in vars(base).items()}
    data = {name: value for name, value in shared.items() if not (name.startswith("__") or is_code(value))}
    return {name: frozen(value) for name, value in {**data, **vars(unit)}.items()}


def is_code(value: Any) -> bool:
    """Whether an attribute of a class is a method, a property or another class."""
    return callable(value) or inspect.isdatadescriptor(value) or isinstance(value, classmethod | staticmethod)


def same_again(subject: Subject) -> None:
    """Another engine makes the same video."""
    same(subject.second.take, subject.take, "a second engine makes another video of the same request")


def jobs_are_apart(subject: Subject) -> None:
    """Two videos of one engine are those of two engines, in either order; the other one lacks inputs if it can."""
    what = "a video is another one when the engine has made one before"
    player = subject.player()
    plan = player.engine.plan
    between = subject.other
    try:
        other = player.play(between(plan))
    except InputError:  # the unit cannot do without them
        between = partial(subject.request, frames=ONE_WINDOW)
        other = player.play(between(plan))
    same(player.play(subject.request(plan)), subject.take, what)
    same(subject.second.player.play(between(plan)), other, what)


def interruption_leaves_nothing(subject: Subject) -> None:
    """A video that was broken off changes nothing in the next one."""
    player = subject.player(Interruption())
    request = partial(subject.request, player.engine.plan)
    with suppress(KeyboardInterrupt):
        player.play(request())
    same(player.play(request()), subject.take, "a video is another one after one that was interrupted")


def windows_are_apart(subject: Subject) -> None:
    """A window depends on the job and `window.previous` alone, so that another process can go on from a file of it."""
    change = "" if len(subject.take.windows) > 1 else "+fixed-frames"
    try:
        take = subject.play(change=change) if change else subject.take
    except PlanError as error:
        check_declared(subject, change, error)
        return
    assert not take.unsaved, f"no video with it can be resumed: {take.unsaved}"
    if take.state is not None:
        again = subject.play(change=change, state=take.state)
        same(again, take, "a window is another one when the run is resumed with it", first=1)


def branches_are_apart(subject: Subject) -> None:
    """The order in which guidance branches are run does not matter."""
    what = "a video is another one when its guidance branches run one by one, in reverse order"
    same(subject.play(Backwards()), subject.take, what, tolerance=ROUNDING)


def branches_can_be_joined(subject: Subject) -> None:
    """Guidance branches may come in one batch; see `forward.stacked` and `forward.repeated`."""
    what = "a video is another one when its guidance branches are joined in one batch"
    same(subject.play(OneBatch()), subject.take, what, tolerance=ROUNDING)


def ranks_can_share(subject: Subject) -> None:
    """The tokens of a call may be spread over ranks; see `forward.frame_index` and `forward.shard`."""
    if issubclass(subject.unit_class, SpreadsWork):
        splits_for_ranks(subject)  # it spreads work itself, over real ranks
        return
    plans = [subject.plan() for _ in range(RANKS)]
    try:
        takes = play_on_ranks(subject.stage, plans, lambda: subject.request(plans[0]))
    except PlanError as error:
        check_declared(subject, "+sequence-parallel", error)
        return
    for rank, take in enumerate(takes):
        what = f"a video is another one on rank {rank} of {RANKS} that share the tokens of each call"
        same(take, subject.take, what, tolerance=ROUNDING)


def splits_for_ranks(subject: Subject) -> None:
    """What it says of one rank and of several is a way to spread them, or refused in one line."""
    for ranks in (1, RANKS):
        try:
            Engine(subject.plan(), subject.stage.models, world=World(size=ranks)).check_split()
        except PlanError as error:
            one_line(error)


def half_precision_will_do(subject: Subject) -> None:
    """The networks may run in bfloat16, as they do on a GPU; what a unit gives them is of `forward.x.dtype`."""
    player = subject.player(dtype=torch.bfloat16)
    with naming("in bfloat16"):
        finite(player.play(subject.request(player.engine.plan, frames=ONE_WINDOW)))


def exact_is_exact(subject: Subject) -> None:
    """A unit that says exact changes what a video costs, not what it shows."""
    if subject.unit_class.exact:
        without = subject.play(change=f"-{subject.unit_class.name}")
        same(subject.take, without, "it says exact and changes the video", tolerance=ROUNDING)


def goes_with_built_in_units(subject: Subject) -> None:
    """With each built-in unit more, and without each, it is asked for its answers and makes a video, or is refused."""
    present, more = set(parse(subject.expression, subject.catalog)), []
    for unit in BUILTIN:
        if unit.name in present:
            if unit.name != subject.unit_class.name:
                works_or_is_refused(subject, f"-{unit.name}")
        elif subject.unit_class.name in unit.replaces:
            continue  # no plan has both
        elif (error := refusal(subject, f"+{unit.name}")) is None:
            more.append(f"+{unit.name}")
        elif isinstance(error, PlanError):
            check_declared(subject, f"+{unit.name}", error)
    try:
        take, asked = subject.asked("".join(more), FRAMES)
        finite(take)
        is_heard = subject.asked_alone <= asked
    except OmniError:
        is_heard = False
    for change in () if is_heard else more:
        works_or_is_refused(subject, change)


def works_or_is_refused(subject: Subject, change: str) -> None:
    """A video for which the unit gave its answers, a conflict that is declared, or an error about inputs or models."""
    with naming(f"with '{subject.expression}{change}'"):
        try:
            take, asked = subject.asked(change, ONE_WINDOW)
            finite(take)
        except PlanError as error:
            check_declared(subject, change, error)
            return
        except OmniError as error:
            one_line(error)
            return
        lost = sorted(subject.asked_alone - asked) if change.startswith("+") else []
        assert not lost, (
            f"its {lost[0]} is never asked, since another unit answers first; wrap the hook, declare the conflict, or "
            "name it in passes_on if None is an answer"
        )


def refusal(subject: Subject, change: str) -> OmniError | None:
    """Why the plan is refused before anything is loaded, if it is."""
    try:
        subject.player(change=change).engine.check_split()
    except OmniError as error:
        one_line(error)
        return error
    return None


def check_declared(subject: Subject, change: str, error: PlanError) -> None:
    """See that the refusal of a plan is one that declarations tell, or that has nothing to do with the unit."""
    reason = one_line(error)
    if declared_refusal(subject, change):
        return
    without = f"{change}-{subject.unit_class.name}"
    try:
        if refusal(subject, without) is not None:
            return
        subject.play(change=without, frames=ONE_WINDOW)
    except OmniError:
        return  # without the unit as well
    raise AssertionError(
        f"'{subject.expression}{change}' is refused, and no declaration says so: {reason}; declare it in conflicts"
    )


def declared_refusal(subject: Subject, change: str) -> str:
    """Why a plan is refused for what the classes of its units say: conflicts, claims, needs and answers."""
    try:
        subject.plan(change).check_complete()
    except PlanError as error:
        return one_line(error)
    return ""


def one_line(error: OmniError) -> str:
    """The reason that a refusal gives."""
    assert str(error), f"it is refused with {type(error).__name__} and no reason"
    assert "\n" not in str(error), f"the reason has more than one line: {error}"
    return str(error)


def finite(take: Take) -> None:
    """See that a video has no NaN and no infinity."""
    assert all(value.isfinite().all() for tensors in take.tensors for value in tensors.values()), (
        "the video has numbers that are not finite"
    )


PROMISES: dict[str, Callable[[Subject], None]] = {
    "documented": documented,
    "declared": declared,
    "settings": settings_are_documented,
    "inputs": inputs_are_documented,
    "hooks": hooks_fit,
    "video": makes_a_video,
    "saved": settings_survive,
    "values": values_are_declared,
    "roles": roles_are_declared,
    "state": nothing_stays_on_the_unit,
    "again": same_again,
    "jobs": jobs_are_apart,
    "interrupted": interruption_leaves_nothing,
    "windows": windows_are_apart,
    "branches": branches_are_apart,
    "batch": branches_can_be_joined,
    "ranks": ranks_can_share,
    "precision": half_precision_will_do,
    "exact": exact_is_exact,
    "together": goes_with_built_in_units,
}
