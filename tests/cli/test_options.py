"""Options out of units: names, help texts, values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from omniavatar.cli.fields import bounds, default, kind, parse_value
from omniavatar.cli.options import split_values, unit_options
from omniavatar.engine.unit import ImageFile, PipelineUnit, UnitInputs, UnitSettings
from omniavatar.errors import PlanError


class Demo(PipelineUnit):
    """Does nothing. But has settings."""

    name = "demo-unit"

    class Settings(UnitSettings):
        times: int = Field(3, ge=1, le=9, description="how often")
        strength: float | None = Field(None, gt=0, description="how much")
        mode: Literal["soft", "hard"] = Field("soft", description="how")
        is_on: bool = Field(True, description="whether")
        label: str | None = Field("no", description="what")
        table: tuple[tuple[int, int], ...] = Field(((1, 2), (3, 4)), description="pairs")

    class Inputs(UnitInputs):
        picture: ImageFile | None = Field(None, description="seen", json_schema_extra={"short": "-p"})
        marks: tuple[float, ...] = Field(description="heard")


FIELDS = {**Demo.Settings.model_fields, **Demo.Inputs.model_fields}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("times", ("INTEGER", "1 to 9", "3")),
        ("strength", ("NUMBER", "above 0", "")),
        ("mode", ("soft|hard", "", "soft")),
        ("is_on", ("true|false", "", "true")),
        ("label", ("TEXT", "", "no")),
        ("table", ("LIST", "", "[[1, 2], [3, 4]]")),
        ("picture", ("IMAGE", "", "")),
        ("marks", ("LIST", "", "")),
    ],
)
def test_a_field_in_words(name: str, expected: tuple[str, str, str]) -> None:
    info = FIELDS[name]
    assert (kind(info), bounds(info), default(info)) == expected


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("times", "7", 7),
        ("strength", "1.5", 1.5),
        ("strength", "none", None),
        ("mode", "no", "no"),
        ("is_on", "false", False),
        ("label", "yes", "yes"),
        ("label", "[a", "[a"),
        ("table", "[[5, 6]]", [[5, 6]]),
        ("table", "[[5", "[[5"),
        ("picture", "12", "12"),
        ("marks", "[0.5, 1]", [0.5, 1]),
    ],
)
def test_a_text_becomes_what_the_field_takes(name: str, text: str, value: Any) -> None:
    assert parse_value(text, FIELDS[name]) == value


def test_options_of_a_unit() -> None:
    options = {str(option.name): option for option in unit_options([Demo], reserved=())}
    assert options["picture"].opts == ["-p", "--picture"]
    assert options["demo_unit__is_on"].opts == ["--demo-unit.is-on"]
    assert options["demo_unit__times"].help == "how often  [1 to 9; default: 3]"
    assert {options["picture"].section, options["marks"].section} == {"Inputs"}
    assert options["demo_unit__times"].section == "demo-unit"


def test_units_that_share_an_input_share_its_option() -> None:
    class Other(Demo):
        """Takes the same picture."""

        name = "other"

    options = [option.name for option in unit_options([Demo, Other], reserved=())]
    assert options.count("picture") == 1
    assert {"demo_unit__times", "other__times"} <= set(options)


def test_an_input_must_not_hide_an_option_of_the_command() -> None:
    with pytest.raises(PlanError, match="unit 'demo-unit' takes an input 'picture', which is an option of the command"):
        unit_options([Demo], reserved={"picture"})


def test_values_are_dealt_out_to_inputs_and_units() -> None:
    values = {"picture": "a.png", "marks": None, "demo_unit__times": "2", "demo_unit__label": "7", "seed": 3}
    inputs, settings = split_values(values, {"demo-unit": Demo})
    assert inputs == {"picture": "a.png"}
    assert settings == {"demo-unit": {"times": 2, "label": "7"}}


def test_paths_are_taken_as_text() -> None:
    class WithPath(UnitSettings):
        place: Path = Field(Path("x"), description="where")

    assert parse_value("null", WithPath.model_fields["place"]) == "null"
    assert kind(WithPath.model_fields["place"]) == "PATH"
