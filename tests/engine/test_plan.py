"""Plan expressions, settings, order, and the messages about everything that does not fit together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from omniavatar.engine.plan import Catalog, Plan, build_plan, claims_hook, hooks_of, order, parse
from omniavatar.engine.scopes import Job, Step
from omniavatar.engine.unit import AudioFile, ImageFile, PipelineUnit, UnitInputs, UnitSettings, VideoFile
from omniavatar.errors import InputError, PlanError
from omniavatar.hookspecs import hookimpl


def unit(name: str, **declared: Any) -> type[PipelineUnit]:
    """A unit class with these declarations."""
    return type(name.title().replace("-", ""), (PipelineUnit,), {"name": name, "__doc__": f"The {name}.", **declared})


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


def test_a_preset_is_weaker_than_what_follows_it() -> None:
    *_, knob = build_plan("most+knob(deep_level=2)", CATALOG, {"knob": {"level": 0.1}}).units
    assert (knob.settings.level, knob.settings.deep_level) == (0.9, 2)
    assert repr(knob) == "knob(level=0.9, deep_level=2)"


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
        voice = unit("voice", provides=("rows", "silent_rows"), nulls=nulls)
        message = error_of("a+voice", catalog_of(A, voice))
        assert message == (
            "unit 'voice': its nulls name 'silent_row', which provides does not; did you mean 'silent_rows'?"
        )


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
    assert message == f"units '{owner.name}' and 'rival' both claim '{hook}'; leave one out with -{owner.name}"


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
