"""Plan expressions, settings, order, and the messages about everything that does not fit together."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from omniavatar.deprecation import say_once
from omniavatar.engine.conditions import BringsConditions
from omniavatar.engine.plan import (
    KINDS,
    Catalog,
    Plan,
    build_plan,
    check_names,
    check_present,
    choose,
    claims_hook,
    hooks_of,
    make_unit,
    order,
    parse,
    with_settings,
)
from omniavatar.engine.scopes import Job, Step
from omniavatar.engine.settings import Layer, Strength, file_layer
from omniavatar.engine.unit import (
    SMALL_CONTRACTS,
    AudioFile,
    ImageFile,
    PipelineUnit,
    UnitInputs,
    UnitSettings,
    VideoFile,
)
from omniavatar.errors import InputError, PlanError
from omniavatar.hookspecs import hookimpl


def unit(name: str, *contracts: type, **declared: Any) -> type[PipelineUnit]:
    """A unit class with these declarations."""
    return type(
        name.title().replace("-", ""), (PipelineUnit, *contracts), {"name": name, "__doc__": f"The {name}.", **declared}
    )


def catalog_of(*units: type[PipelineUnit], **presets: str) -> Catalog:
    return Catalog({each.name: each for each in units}, presets)


class Knob(PipelineUnit):
    """A unit with settings."""

    name = "knob"

    class Settings(UnitSettings):
        level: float = Field(0.5, ge=0, le=1, description="how much")
        words: tuple[str, ...] = Field(("a",), description="what")
        text: str = Field("", description="any text")
        deep_level: int = Field(1, ge=1, description="how deep")


A, B, C = unit("a"), unit("b"), unit("c")
TEA_CACHE, TEA = unit("tea-cache"), unit("tea")
CATALOG = catalog_of(
    A, B, C, Knob, TEA_CACHE, TEA, default="a+b+tea-cache", more="default+c-b", most="more+knob(level=0.9)"
)


def names(plan: Plan) -> list[str]:
    return [each.name for each in plan.units]


def error_of(expression: str, catalog: Catalog = CATALOG, *layers: Any) -> str:
    """The one line that a plan fails with."""
    with pytest.raises(PlanError) as caught:
        build_plan(expression, catalog, *layers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Grammar


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a", ["a"]),
        ("a+b", ["a", "b"]),
        ("b+a", ["b", "a"]),
        ("default", ["a", "b", "tea-cache"]),
        ("default-b", ["a", "tea-cache"]),
        ("default-tea-cache", ["a", "b"]),
        ("default-tea-cache-b+tea", ["a", "tea"]),
        ("tea-cache-tea-cache+tea", ["tea"]),
        ("  default  -  b  +  c ", ["a", "tea-cache", "c"]),
        ("more", ["a", "tea-cache", "c"]),
        ("most", ["a", "tea-cache", "c", "knob"]),
        ("a+a", ["a"]),
        ("a()+b", ["a", "b"]),
        ("a+b-a+a", ["b", "a"]),
    ],
)
def test_expressions(expression: str, expected: list[str]) -> None:
    assert list(parse(expression, CATALOG)) == expected


def test_the_built_in_plan_with_a_unit_out_and_one_in(catalog: Catalog) -> None:
    plan = build_plan("default-reference-image+teacache(threshold=0.2)", catalog)
    assert "reference-image" not in plan
    assert plan.units[-1].settings.threshold == 0.2


@pytest.mark.parametrize("out", [["audio"], ["audio-adapter"], ["audio", "audio-adapter"]])
def test_the_sound_and_who_hears_it_can_be_left_out(catalog: Catalog, out: list[str]) -> None:
    everything = names(build_plan("default", catalog))
    assert names(build_plan("-".join(["default", *out]), catalog)) == [name for name in everything if name not in out]


def test_audio_layers_come_behind_the_sound_wherever_they_are_written(catalog: Catalog) -> None:
    plan = names(build_plan("audio-adapter+default", catalog))
    assert plan.index("audio") < plan.index("audio-adapter")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("level=0.25", {"level": 0.25}),
        ("level=1e-3", {"level": 0.001}),
        ("words=[x, y], level=1", {"words": ("x", "y"), "level": 1}),
        ("deep-level=3", {"deep_level": 3}),
        ("text='one, two (three)', level=0", {"text": "one, two (three)", "level": 0}),
        ('text="a=b, don\'t"', {"text": "a=b, don't"}),
        ("words=['x,)', \"(y\"]", {"words": ("x,)", "(y")}),
        ("text=don't", {"text": "don't"}),
        (" level = 0.1 , ", {"level": 0.1}),
    ],
)
def test_settings_are_yaml_values(settings: str, expected: dict[str, Any]) -> None:
    (knob,) = build_plan(f"knob({settings})", CATALOG).units
    assert {key: getattr(knob.settings, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "the plan expression is empty; for example: default"),
        ("a+", "plan expression 'a+': a unit or preset is missing at ''"),
        ("a++b", "plan expression 'a++b': a unit or preset is missing at '+b'"),
        ("a b", "plan expression 'a b': expected '+' or '-' at 'b'"),
        ("knob(level=1", "plan expression 'knob(level=1': '(' is never closed"),
        ("knob(text='x)", "plan expression 'knob(text='x)': '(' is never closed"),
        ("knob(level)", "setting 'level' is not key=value"),
        ("knob(level=1, level=0)", "setting 'level=0': 'level' is given twice"),
        ("knob(text=@)", "setting 'text=@': cannot read the value"),
        ("default(level=1)", "'default' takes no settings here; settings belong to a unit that is added"),
        ("knob-knob(level=1)", "'knob' takes no settings here; settings belong to a unit that is added"),
        ("default-xyz", "unknown unit or preset 'xyz'; choices: a, b, tea-cache"),
        ("defualt", "unknown unit or preset 'defualt'; did you mean 'default'?"),
        ("more-default", "'-b': the plan has no unit 'b' to take out; choices: c"),
        ("default-c", "'-c': the plan has no unit 'c' to take out; choices: a, b, tea-cache"),
        ("knob(levle=1)", "unit 'knob' has no setting 'levle'; did you mean 'level'?"),
        ("a(level=1)", "unit 'a' has no setting 'level'; it has no settings"),
        ("knob(level=2)", "unit 'knob': level = 2: input should be less than or equal to 1"),
        ("knob(level=high)", "unit 'knob': level = 'high': input should be a valid number"),
    ],
)
def test_messages_about_expressions_and_settings(expression: str, message: str) -> None:
    assert error_of(expression).startswith(message)


def test_presets_cannot_contain_themselves() -> None:
    circle = catalog_of(A, one="two", two="a+one")
    assert error_of("one", circle) == "preset 'one' contains itself: one > two > one"


# Settings


def test_later_settings_win_and_the_expression_wins_over_all() -> None:
    weak: dict[str, Any] = {"knob": {"level": 0.1, "text": "weak", "deep_level": 5}, "absent": {"x": 1}}
    strong = {"knob": {"level": 0.2, "text": "strong"}}
    (knob,) = build_plan("knob(level=0.3)+knob(words=[z])", CATALOG, weak, strong).units
    assert knob.settings.model_dump() == {"level": 0.3, "words": ("z",), "text": "strong", "deep_level": 5}
    assert weak["knob"] == {"level": 0.1, "text": "weak", "deep_level": 5}


def test_a_preset_is_weaker_than_everything_but_a_default() -> None:
    *_, knob = build_plan("most+knob(deep_level=2)", CATALOG).units
    assert repr(knob) == "knob(level=0.9, deep_level=2)"
    *_, knob = build_plan("most", CATALOG, Layer(Strength.CHECKPOINT, "checkpoint x", {"knob": {"level": 0.1}})).units
    assert knob.settings.level == 0.1
    *_, knob = build_plan("most+knob(level=0.3)", CATALOG).units
    assert knob.settings.level == 0.3
    knob, *_ = build_plan("knob(level=0.3)+most", CATALOG).units
    assert knob.settings.level == 0.3, "also in front of the preset"


def layer(strength: Strength, origin: str, **knob: Any) -> Layer:
    return Layer(strength, origin, {"knob": knob})


def test_every_source_beats_the_weaker_ones_in_whatever_order_they_come() -> None:
    """Of all sources that speak about a setting, the strongest, and the plan says which."""
    sources = [
        layer(Strength.CHECKPOINT, "checkpoint x", level=0.1, deep_level=1, text="checkpoint"),
        layer(Strength.FILE, "file y", level=0.2, deep_level=2),
        layer(Strength.EXPLICIT, "settings", level=0.4, deep_level=4),
        layer(Strength.OVERRIDE, "--hp", deep_level=5),
    ]
    for layers in permutations(sources):
        plan = build_plan("most+knob(level=0.3, words=[z])", CATALOG, *layers)
        assert plan.units[-1].settings.model_dump() == {
            "level": 0.4,
            "words": ("z",),
            "text": "checkpoint",
            "deep_level": 5,
        }
        assert plan.origins["knob"] == {
            "level": "settings",
            "words": "plan",
            "text": "checkpoint x",
            "deep_level": "--hp",
        }
    assert build_plan("most", CATALOG).origins["knob"] == {
        "level": "preset most",
        "words": "default",
        "text": "default",
        "deep_level": "default",
    }


def test_a_wrong_setting_says_where_it_is_from() -> None:
    for wrong, message in (
        ({"level": 2}, "unit 'knob': level = 2: input should be less than or equal to 1 (from checkpoint x)"),
        ({"levle": 2}, "unit 'knob' has no setting 'levle'; did you mean 'level'? (from checkpoint x)"),
    ):
        assert error_of("knob", CATALOG, layer(Strength.CHECKPOINT, "checkpoint x", **wrong)) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"knobb": {"level": 1}}, "file y: unknown unit 'knobb'; did you mean 'knob'?"),
        ({"knob": {"levle": 1}}, "file y: unit 'knob' has no setting 'levle'; did you mean 'level'?"),
        ({"a": {"level": 1}}, "file y: unit 'a' has no setting 'level'; it has no settings"),
    ],
)
def test_names_in_settings_are_checked_for_absent_units_too(settings: Any, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_names(file_layer("y", settings), CATALOG)
    assert str(caught.value) == message


class First(Knob):
    """A schedule."""

    name = "first"

    @hookimpl
    def plan_steps(self) -> None: ...


class Second(First):
    """Another one."""

    name = "second"


class Third(PipelineUnit):
    """A schedule without settings of these names."""

    name = "third"

    class Settings(UnitSettings):
        sigmas: tuple[float, ...] = Field((1.0, 0.5), description="noise levels")

    @hookimpl
    def plan_steps(self) -> None: ...


SAMPLERS = catalog_of(A, First, Second, Third)


def test_what_is_said_about_a_sampler_holds_for_the_one_in_its_place() -> None:
    for strength in (Strength.CHECKPOINT, Strength.FILE, Strength.EXPLICIT, Strength.OVERRIDE):
        plan = build_plan("a+second", SAMPLERS, Layer(strength, "x", {"first": {"level": 0.25}}))
        assert (plan.units[-1].settings.level, plan.origins["second"]["level"]) == (0.25, "x")
    both = Layer(Strength.FILE, "x", {"second": {"level": 0.75}, "first": {"level": 0.25, "deep_level": 3}})
    (second,) = build_plan("second", SAMPLERS, both).units
    assert (second.settings.level, second.settings.deep_level) == (0.75, 3)
    stronger = Layer(Strength.OVERRIDE, "--hp", {"first": {"level": 0.5}})
    assert build_plan("second", SAMPLERS, both, stronger).units[0].settings.level == 0.5


def test_what_nobody_takes_is_said(caplog: pytest.LogCaptureFixture) -> None:
    build_plan("third", SAMPLERS, Layer(Strength.CHECKPOINT, "checkpoint x", {"first": {"level": 0.25}}))
    assert caplog.messages == [
        "checkpoint x: first.level has no effect: unit 'first' is not in the plan, and 'third' in its place has no "
        "such setting"
    ]
    override = Layer(Strength.OVERRIDE, "--hp", {"first": {"level": 0.25}})
    assert error_of("third", SAMPLERS, override).startswith("--hp: nothing takes first.level: unit 'first' is not in")
    assert error_of("a", SAMPLERS, override).startswith("--hp: nothing takes first.level: unit 'first' is not in")


class Grid(PipelineUnit):
    """A schedule."""

    name = "grid"

    class Settings(UnitSettings):
        steps: int = Field(50, ge=1, le=1000, description="steps")
        rho: float = Field(1.0, ge=0, le=9, description="spacing")

    @hookimpl
    def plan_steps(self) -> None: ...


class Old(PipelineUnit):
    """A solver that had the steps once."""

    name = "old"
    brings = ("grid",)
    moved: ClassVar = {"steps": "grid.steps", "spacing": "grid.rho"}

    @hookimpl
    def advance(self) -> None: ...


class New(Old):
    """Another one, which suggests how many."""

    name = "new"
    suggests: ClassVar = {"grid": {"steps": 25}, "absent": {"x": 1}}


class Own(Grid):
    """A schedule and a solver in one, from before they were apart."""

    name = "own"

    @hookimpl
    def advance(self) -> None: ...


MOVED = catalog_of(A, Grid, Old, New, Own, early="a+old(steps=40, spacing=2)", late="a+grid+old")


def grid(expression: str, *layers: Layer) -> tuple[int, float]:
    (found,) = [unit for unit in build_plan(expression, MOVED, *layers).units if unit.name in ("grid", "own")]
    return found.settings.steps, found.settings.rho


@pytest.mark.parametrize(
    ("expression", "units", "settings"),
    [
        ("old", "grid+old", (50, 1)),
        ("a+old(steps=3)", "a+grid+old", (3, 1)),
        ("early", "a+grid+old", (40, 2)),
        ("early-old+new", "a+grid+new", (25, 1)),
        ("late+old(steps=3)-old+new", "a+grid+new", (3, 1)),
        ("late-old+new", "a+grid+new", (25, 1)),
        ("late-old+new(steps=4)", "a+grid+new", (4, 1)),
        ("late+grid(steps=5)+old(steps=6)", "a+grid+old", (6, 1)),
        ("old(steps=6)+grid(steps=5)", "old+grid", (5, 1)),
        ("early+grid(steps=5)", "a+old+grid", (5, 2)),
        ("own(steps=7)", "own", (7, 1)),
    ],
)
def test_a_solver_brings_its_schedule_and_old_names_reach_it(
    expression: str, units: str, settings: tuple[int, float]
) -> None:
    assert "+".join(names(build_plan(expression, MOVED))) == units
    assert grid(expression) == settings


@pytest.mark.parametrize("strength", [Strength.CHECKPOINT, Strength.FILE, Strength.EXPLICIT, Strength.OVERRIDE])
def test_old_names_are_read_in_every_layer(strength: Strength) -> None:
    assert grid("late", Layer(strength, "x", {"old": {"steps": 3, "spacing": 2}})) == (3, 2)
    assert grid("late-old+new", Layer(strength, "x", {"old": {"steps": 3}})) == (3, 1), "whichever solver it is about"
    both = {"new": {"steps": 6}, "old": {"steps": 3}}
    assert (grid("late", Layer(strength, "x", both)), grid("late-old+new", Layer(strength, "x", both))) == (
        (3, 1),
        (6, 1),
    )
    for first, last, expected in (("grid", "old", 3), ("old", "grid", 3), ("new", "grid", 3), ("grid", "new", 3)):
        layer = Layer(strength, "x", {first: {"steps": 9}, last: {"steps": expected}})
        assert grid("late", layer) == (expected, 1), "the last of several names counts"
    assert grid("own", Layer(strength, "x", {"old": {"steps": 3}})) == (3, 1), "as grid.steps would be"


def test_what_a_unit_suggests_is_weaker_than_all_that_is_said() -> None:
    plan = build_plan("new", MOVED)
    assert plan.origins["grid"] == {"steps": "unit new", "rho": "default"}
    assert grid("grid(steps=3)+new") == (3, 1)
    for strength in Strength:
        if strength > Strength.SUGGESTED:
            assert grid("new", Layer(strength, "x", {"grid": {"steps": 4}})) == (4, 1)


def test_an_old_name_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    say_once.cache_clear()
    for _ in range(2):
        grid("late", file_layer("y", {"old": {"steps": 3}}), Layer(Strength.CHECKPOINT, "x", {"old": {"steps": 4}}))
    assert caplog.messages == ["file y: old.steps is grid.steps now; the old name still works"]


def test_old_names_are_checked_as_those_of_today() -> None:
    check_names(file_layer("y", {"old": {"steps": 3}}), MOVED)
    with pytest.raises(PlanError, match="file y: unit 'old' has no setting 'step'"):
        check_names(file_layer("y", {"old": {"step": 3}}), MOVED)
    assert error_of("old(steps=0)", MOVED) == "unit 'grid': steps = 0: input should be greater than or equal to 1"
    without = catalog_of(Old)
    assert error_of("old(steps=1)", without) == (
        "unit 'old' has no setting 'steps': it is grid.steps now, and the plan has no unit that takes it"
    )


def test_old_names_change_a_plan_that_stands() -> None:
    changed = with_settings(build_plan("late", MOVED), {"old": {"steps": 3}})
    assert (changed.units[1].settings.steps, changed.origins["grid"]["steps"]) == (3, "settings")


class Renamed(PipelineUnit):
    """A unit that was called otherwise, and so was its setting."""

    name = "new-name"
    former_names = ("old-name", "oldest")
    moved: ClassVar = {"width": "new-name.size"}

    class Settings(UnitSettings):
        size: int = 1


RENAMED = catalog_of(A, Renamed, both="a+old-name(size=2)")


def size(expression: str, *layers: Layer) -> int:
    (found,) = [unit for unit in build_plan(expression, RENAMED, *layers).units if unit.name == "new-name"]
    size: int = found.settings.size
    return size


def test_former_names_of_units_are_read_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    say_once.cache_clear()
    assert size("a+old-name") == 1
    assert size("oldest(width=4)+a") == 4
    assert size("both") == 2
    assert names(build_plan("both-old-name", RENAMED)) == ["a"]
    for strength in (Strength.CHECKPOINT, Strength.FILE, Strength.EXPLICIT, Strength.OVERRIDE):
        for name in ("old-name", "new-name"):
            for setting in ("size", "width"):
                assert size("a+new-name", Layer(strength, "x", {name: {setting: 7}})) == 7
    check_names(file_layer("y", {"oldest": {"width": 3}}), RENAMED)
    changed = with_settings(build_plan("new-name", RENAMED), {"oldest": {"size": 3}})
    assert changed.units[0].settings.size == 3
    assert "plan: old-name is new-name now; the old name still works" in caplog.messages
    assert "x: new-name.width is new-name.size now; the old name still works" in caplog.messages
    assert caplog.messages.count("plan: old-name is new-name now; the old name still works") == 1


def test_two_schedules_or_solvers_are_refused() -> None:
    assert error_of("late+own", MOVED) == "units 'grid' and 'own' are both schedules; leave one out with -grid"
    assert error_of("late+own-grid", MOVED) == "units 'old' and 'own' are both solvers; leave one out with -old"
    assert names(build_plan("late+own-grid-old", MOVED)) == ["a", "own"]


def test_explicit_settings_of_an_absent_unit_are_refused() -> None:
    for plan, message in (
        ("a", "settings: unit 'first' is not in the plan; add it, such as with '+first'"),
        ("a+second", "settings: unit 'first' is not in the plan; 'second' is in its place"),
    ):
        with pytest.raises(PlanError) as caught:
            check_present({"first": {"level": 1}}, choose(plan, SAMPLERS), SAMPLERS)
        assert str(caught.value) == message


def test_settings_of_a_plan_that_stands_can_be_changed() -> None:
    plan = build_plan("a+knob(level=0.25, text=x)", CATALOG)
    changed = with_settings(plan, {"knob": {"level": 0.75}, "a": {}})
    assert (str(plan), str(changed)) == ("a+knob(level=0.25, text=x)", "a+knob(level=0.75, text=x)")
    assert changed.units[0] is plan.units[0]
    assert (changed.units[1].settings.level, changed.units[1].settings.text) == (0.75, "x")
    assert (changed.origins["knob"]["level"], changed.origins["knob"]["text"]) == ("settings", "plan")
    for wrong, message in (
        ({"knbo": {}}, "settings: unit 'knbo' is not in the plan; did you mean 'knob'?"),
        ({"knob": 3}, "settings: those of 'knob' are 3 and not a mapping of names to values"),
        ({"knob": {"level": 3}}, "unit 'knob': level = 3: input should be less than or equal to 1"),
    ):
        with pytest.raises(PlanError) as caught:
            with_settings(plan, wrong)  # type: ignore[arg-type]
        assert str(caught.value) == message


def test_a_unit_that_has_used_its_settings_keeps_them() -> None:
    class Fixed(Knob):
        """Has been set up."""

        name = "fixed"

        @hookimpl
        def setup(self) -> None: ...

    plan = build_plan("fixed(level=0.25)", catalog_of(Fixed))
    assert with_settings(plan, {"fixed": {"level": 0.25}}).units == plan.units
    with pytest.raises(PlanError, match="unit 'fixed' used its settings when the engine was set up; open another"):
        with_settings(plan, {"fixed": {"level": 0.5}})


@pytest.mark.parametrize("value", ["true", ".nan", "-.inf", "nan", "[1]"])
def test_what_is_no_number_is_refused_for_one(value: str) -> None:
    assert error_of(f"knob(level={value})").startswith("unit 'knob': level = ")
    assert error_of("knob(words=[true])").startswith("unit 'knob': words = [True]: true and false are no numbers")


def test_values_without_end_are_one_short_line() -> None:
    for value in ("[" * 5000, "[" * 5000 + "]" * 5000, "9" * 10_000, "{a: " * 100 + "}" * 100):
        assert len(error_of(f"knob(level={value})")) < 300 or "never closed" in error_of(f"knob(level={value})")
    with pytest.raises(PlanError) as caught:
        make_unit(Knob, {"level": [[10**5000]] * 1000})
    assert len(str(caught.value)) < 300


# Hooks that several units may answer


def answering(name: str, *hooks: str, passes_on: bool = False, first: bool = False) -> type[PipelineUnit]:
    """A unit that answers these hooks."""

    def answer(hook: str) -> Any:
        @hookimpl(tryfirst=first, specname=hook)
        def method(self: PipelineUnit) -> None: ...

        return method

    return unit(name, passes_on=hooks if passes_on else (), **{hook: answer(hook) for hook in hooks})


@pytest.mark.parametrize("hook", ["run_blocks", "run_block", "predict", "substitute", "call"])
def test_an_answer_that_would_never_be_asked_for_is_refused(hook: str) -> None:
    one, two, some = answering("one", hook), answering("two", hook), answering("some", hook, passes_on=True)
    early = answering("early", hook, passes_on=True, first=True)
    known = catalog_of(one, two, some, early)
    assert error_of("one+two", known) == (
        f"units 'one' and 'two' both answer '{hook}', and the first, 'one', leaves nothing to the other; "
        "leave one out with -one"
    )
    assert error_of("two+one", known).startswith("units 'two' and 'one' both answer")
    assert error_of("one+some", known).startswith("units 'one' and 'some' both answer")
    assert error_of("some+one+two", known).startswith("units 'one' and 'two' both answer")
    for fine in ("one", "some+one", "early+some+two", "one+early", "some+early"):
        assert names(build_plan(fine, known)) == fine.split("+")


def test_the_one_whose_work_it_is_and_wrappers_go_with_all(catalog: Catalog) -> None:
    class Around(PipelineUnit):
        """Works around."""

        name = "around"

        @hookimpl(wrapper=True)
        def run_blocks(self) -> Any:
            return (yield)

    known = Catalog({**catalog.units, "around": Around, "one": answering("one", "run_blocks")}, catalog.presets)
    build_plan("default+around+one", known)
    build_plan("default+teacache+one", known)
    assert "'first-block-cache' and 'one' both answer 'run_blocks'" in error_of("default+first-block-cache+one", known)
    assert "'one' and 'teacache' both answer 'run_blocks'" in error_of("default+one+teacache", known)


def test_what_has_been_replaced_may_be_taken_out_too() -> None:
    """Whoever wrote `default+unipc-euler` before keeps his plan."""
    new = unit("new-knob", replaces=("knob",))
    catalog = catalog_of(A, Knob, new)
    for expression in ("a+knob+new-knob-knob", "a+new-knob-knob", "a+knob-knob+new-knob"):
        assert names(build_plan(expression, catalog)) == ["a", "new-knob"]
    assert "has no unit 'knob' to take out" in error_of("a-knob", catalog)


def test_a_unit_takes_those_out_that_it_replaces() -> None:
    one, two = Knob, unit("two", replaces=("knob", "three"))
    known = catalog_of(one, two, unit("three"), unit("four"), both="knob(level=0.1)+four", again="both+three+two")
    names = {text: build_plan(text, known).names for text in ("knob+two", "both+two", "two+both", "four+three+two")}
    assert names == {
        "knob+two": ["two"],
        "both+two": ["four", "two"],
        "two+both": ["two", "four"],
        "four+three+two": ["four", "two"],
    }
    assert build_plan("again", known).names == ["four", "two"]
    assert build_plan("both+two+knob", known).names == ["four", "two", "knob"], "whoever asks for both gets both"
    assert build_plan("both+two-two+knob", known).names == ["four", "knob"]


def test_settings_of_a_unit_that_is_replaced() -> None:
    two = type("Two", (Knob,), {"__doc__": "Another.", "name": "two", "replaces": ("knob",)})
    known = catalog_of(Knob, two)
    said = error_of("knob(level=0.2, text=x)+two", known)
    assert said == "'two' replaces 'knob', so nothing takes knob.level, knob.text; leave it out"
    (taker,) = build_plan("knob+two", known, {"knob": {"level": 0.3}}).units
    assert (taker.name, taker.settings.level) == ("two", 0.3)


def test_two_attention_kernels_are_refused(catalog: Catalog) -> None:
    mine = unit("my-kernel", claims=("attention_kernel",))
    known = Catalog({**catalog.units, "my-kernel": mine}, catalog.presets)
    message = "both claim 'attention_kernel'; leave one out with -"
    assert message in error_of("default+attention+my-kernel", known)
    assert message in error_of("default+my-kernel+attention", known)


def test_layers_are_checked_like_expressions() -> None:
    assert error_of("knob", CATALOG, {"knob": {"level": -1}}).startswith("unit 'knob': level = -1: ")


# Order


def test_the_order_is_that_of_the_expression_where_nothing_is_needed() -> None:
    for expression in ("a+b+c", "c+a+b", "b+c+a"):
        assert names(build_plan(expression, CATALOG)) == expression.split("+")


def test_makers_come_before_readers_and_the_rest_stays() -> None:
    reader, maker = unit("reader", needs=("value",)), unit("maker", provides=("value",))
    known = catalog_of(A, B, C, reader, maker)
    assert names(build_plan("a+reader+b+maker+c", known)) == ["a", "b", "maker", "reader", "c"]
    assert names(build_plan("a+maker+b+reader+c", known)) == ["a", "maker", "b", "reader", "c"]


def test_an_optional_value_orders_only_if_somebody_makes_it() -> None:
    reader, maker = unit("reader", uses=("value",)), unit("maker", provides=("value",))
    known = catalog_of(A, reader, maker)
    assert names(build_plan("reader+a", known)) == ["reader", "a"]
    assert names(build_plan("reader+a+maker", known)) == ["a", "maker", "reader"]


def test_units_that_change_a_value_stand_between_its_maker_and_its_readers_as_listed() -> None:
    reader, maker = unit("reader", needs=("value",)), unit("maker", provides=("value",))
    first = unit("first", needs=("value",), provides=("value",))
    second = unit("second", uses=("value",), provides=("value",))
    known = catalog_of(reader, maker, first, second)
    assert names(build_plan("reader+first+second+maker", known)) == ["maker", "first", "second", "reader"]
    assert names(build_plan("second+reader+maker+first", known)) == ["maker", "second", "first", "reader"]


def test_units_that_change_a_value_stay_as_listed_also_when_the_first_waits_for_something_else() -> None:
    maker, other = unit("maker", provides=("value",)), unit("other", provides=("extra",))
    first = unit("first", needs=("value", "extra"), provides=("value",))
    second = unit("second", needs=("value",), provides=("value",))
    known = catalog_of(maker, other, first, second)
    assert names(build_plan("maker+first+second+other", known)) == ["maker", "other", "first", "second"]


def test_a_value_of_the_previous_window_must_be_made_but_does_not_order() -> None:
    reader, maker = unit("reader", needs=("previous.value",)), unit("maker", provides=("value",))
    both = catalog_of(reader, maker)
    assert names(build_plan("reader+maker", both)) == ["reader", "maker"]
    assert error_of("reader", both) == "unit 'reader' needs 'previous.value', which no unit of the plan provides"


def test_the_built_in_order_is_the_one_written(catalog: Catalog) -> None:
    assert "+".join(names(build_plan("default", catalog))) == catalog.presets["default"]


def test_the_order_does_not_depend_on_chance() -> None:
    units = [unit(f"u{index}", needs=(f"v{index + 1}",), provides=(f"v{index}",))() for index in range(6)]
    units.append(unit("last", provides=("v6",))())
    assert [each.name for each in order(units)] == ["last", "u5", "u4", "u3", "u2", "u1", "u0"]


# What does not fit together


def test_an_unmet_need() -> None:
    reader = unit("reader", needs=("value",))
    assert error_of("reader", catalog_of(reader)) == "unit 'reader' needs 'value', which no unit of the plan provides"


def test_a_changed_value_needs_a_maker() -> None:
    changer = unit("changer", needs=("value",), provides=("value",))
    assert "needs 'value', which no unit" in error_of("changer", catalog_of(changer))


def test_a_circle() -> None:
    one, two = unit("one", needs=("x",), provides=("y",)), unit("two", needs=("y",), provides=("x",))
    message = error_of("a+one+two", catalog_of(A, one, two))
    assert message == "units 'one', 'two' need each other's values in a circle; leave one out"


def test_a_conflict_in_either_order() -> None:
    rude = unit("rude", conflicts={"a": "they quarrel"})
    for expression in ("a+rude", "rude+a"):
        message = error_of(expression, catalog_of(A, rude))
        assert message == "units 'rude' and 'a' cannot work together: they quarrel; leave one out with -a"
    assert names(build_plan("rude", catalog_of(A, rude))) == ["rude"]


def test_a_conflict_with_a_value_is_one_with_whoever_provides_it() -> None:
    plain = unit("plain", conflicts={"value": "it has no place for one"})
    maker, changer = unit("maker", provides=("value",)), unit("changer", needs=("value",), provides=("value",))
    for other in (maker, changer):
        message = error_of(f"{other.name}+plain", catalog_of(maker, changer, plain))
        assert message.startswith(f"units 'plain' and '{other.name}' cannot work together: it has no place for one;")
    both = unit("both", provides=("value",), conflicts={"value": "there is one already"})
    assert names(build_plan("both", catalog_of(both))) == ["both"]


def test_a_null_form_that_its_unit_does_not_provide() -> None:
    for nulls in ({"voice": {"rows": "silent_row"}}, {"voice": {"silent_row": "rows"}}):
        voice = unit("voice", BringsConditions, provides=("rows", "silent_rows"), nulls=nulls)
        message = error_of("a+voice", catalog_of(A, voice))
        assert message == (
            "unit 'voice': its nulls name 'silent_row', which provides does not; did you mean 'silent_rows'?"
        )


@pytest.mark.parametrize("attribute", SMALL_CONTRACTS)
def test_what_a_unit_says_to_a_part_that_would_not_hear_it(attribute: str) -> None:
    """Every small contract exists and asks for what the table says; without it a declaration is a fault."""
    module, _, name = SMALL_CONTRACTS[attribute].rpartition(".")
    contract = getattr(import_module(module), name)
    assert hasattr(contract, attribute) != (attribute in ("main_rank_only", "rehearses", "trains"))
    said = {attribute: getattr(contract, attribute, True)}
    message = error_of("a+deaf", catalog_of(A, unit("deaf", **said)))
    assert message.startswith(f"unit 'deaf': its {attribute} is never asked for, since it is no {name}; derive it from")
    assert names(build_plan("a+deaf", catalog_of(A, unit("deaf", contract, **said)))) == ["a", "deaf"]


@pytest.mark.parametrize(
    ("module", "name", "attribute"),
    [("placing", "PlacesWeights", "host_roles"), ("residency", "IdleInSteps", "idle_in_steps")],
)
def test_roles_that_are_no_names_in_a_tuple(module: str, name: str, attribute: str) -> None:
    contract = getattr(import_module(f"omniavatar.engine.{module}"), name)
    message = error_of("wrong", catalog_of(unit("wrong", contract, **{attribute: "vae"})))
    assert message == f"unit 'wrong': its {attribute} are 'vae' and not names in a tuple, such as ('frames',)"


def test_a_check_under_its_old_name() -> None:
    message = error_of("old", catalog_of(unit("old", check_models=lambda self, models: None)))
    assert message == "unit 'old': its check_models is never called; it is check(plan, models) now"


def test_what_is_not_in_the_plan_is_not_suggested_to_be_taken_out(catalog: Catalog) -> None:
    known = Catalog({**catalog.units, "motion": unit("motion")}, catalog.presets)
    assert error_of("default-motoin", known).startswith("unknown unit or preset 'motoin'; choices: ")


def test_two_makers_of_one_value() -> None:
    one, two = unit("one", provides=("x",)), unit("two", provides=("x",))
    said = error_of("one+two", catalog_of(one, two))
    assert said == "units 'one' and 'two' both provide 'x'; leave one out with -one"


@pytest.mark.parametrize("hook", ["plan_windows", "plan_steps", "guide", "advance"])
def test_two_claims_on_an_exclusive_hook(hook: str, catalog: Catalog) -> None:
    owner = next(each for each in catalog.units.values() if claims_hook(each, hook))
    rival = unit("rival", answer=hookimpl(specname=hook)(lambda self: None))
    known = Catalog({**catalog.units, "rival": rival}, catalog.presets)
    message = error_of("default+rival", known)
    both = f"are both {KINDS[hook]}" if hook in KINDS else f"both claim '{hook}'"
    assert message == f"units '{owner.name}' and 'rival' {both}; leave one out with -{owner.name}"


def test_a_wrapper_is_no_claim(catalog: Catalog) -> None:
    class Around(PipelineUnit):
        name = "around"

        @hookimpl(wrapper=True)
        def guide(self, step: Step) -> Any:
            return (yield)

    known = Catalog({**catalog.units, "around": Around}, catalog.presets)
    assert "around" in build_plan("default+around", known)
    assert set(hooks_of(Around)) == {"guide"}


# Inputs


def taking(name: str, annotation: Any, *default: Any) -> type[PipelineUnit]:
    """A unit with one input `thing` of this kind."""
    declared = {"__annotations__": {"thing": annotation}, **({"thing": default[0]} if default else {})}
    return unit(name, Inputs=type("Inputs", (UnitInputs,), declared))


def test_an_input_that_two_units_take_goes_to_both(tmp_path: Any) -> None:
    sound = tmp_path / "sound.wav"
    sound.write_bytes(b"RIFF")
    plan = build_plan("one+two", catalog_of(taking("one", AudioFile), taking("two", AudioFile)))
    inputs = plan.parse_inputs({"thing": str(sound)})
    assert inputs["one"].thing == inputs["two"].thing == sound  # type: ignore[attr-defined]
    assert list(plan.input_fields) == ["thing"]


@pytest.mark.parametrize(
    "kinds",
    [
        (int, str),
        (AudioFile, ImageFile),
        (AudioFile | None, VideoFile | None),
        (AudioFile, AudioFile | None),
    ],
)
def test_units_may_not_mean_different_things_by_one_input(kinds: Sequence[Any]) -> None:
    known = catalog_of(*(taking(name, kind) for name, kind in zip(("one", "two"), kinds, strict=True)))
    assert error_of("one+two", known) == "units 'one' and 'two' take different kinds of input 'thing'"


def test_inputs_are_checked(catalog: Catalog, tmp_path: Any) -> None:
    plan = build_plan("default", catalog)
    for raw, message in (
        ({"imgae": "x.png"}, "no unit of the plan takes an input 'imgae'; did you mean 'image'?"),
        ({"image": tmp_path / "none.png"}, f"image '{tmp_path}/none.png' does not exist; looked in '{Path.cwd()}'"),
        ({"image": tmp_path}, f"image '{tmp_path}' is a folder; give a file"),
        ({"prompt": 5}, "unit 'prompt': prompt = 5: input should be a valid string"),
    ):
        with pytest.raises(InputError) as caught:
            plan.parse_inputs(raw)
        assert str(caught.value) == message


def test_a_required_input_is_missed() -> None:
    plan = build_plan("one", catalog_of(taking("one", int)))
    with pytest.raises(InputError, match="unit 'one': 'thing' is required"):
        plan.parse_inputs({})


def test_units_describe_themselves() -> None:
    class Quiet(PipelineUnit):
        """First line.

        More.
        """

        name = "quiet"

        @hookimpl
        def begin_job(self, job: Job) -> None: ...

    assert Quiet.summary() == "First line."
    assert repr(Quiet()) == "quiet"
    assert list(hooks_of(Quiet)) == ["begin_job"]
