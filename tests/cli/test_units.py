"""`omni units`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from omniavatar.units import BUILTIN
from tests.cli.conftest import Omni

PLUGIN = '''
from pydantic import Field
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl

class Sparkle(PipelineUnit):
    """Adds [red] stars."""
    name = "sparkle"
    uses = ("condition",)
    class Settings(UnitSettings):
        count: int = Field(5, ge=1, description="stars, [left, right]")
    @hookimpl
    def begin_window(self, window): ...

@hookimpl
def omni_units():
    return [Sparkle]

@hookimpl
def omni_presets():
    return {"sparkling": "default+sparkle(count=7)"}
'''


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_list_has_every_unit_and_preset(omni: Omni) -> None:
    outcome = omni("units", "list")
    assert (outcome.code, outcome.err) == (0, "")
    for unit in BUILTIN:
        assert f"{unit.name} " in outcome.out
        assert unit.summary() in outcome.out
    assert "prompt+reference-image+audio" in outcome.out


def test_lists_are_not_wrapped_where_stdout_is_no_terminal(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    for command in (("units", "list"), ("models", "list"), ("plugins", "list"), ("units", "show", "teacache")):
        lines = omni(*command).out.splitlines()
        assert max(map(len, lines)) > 80
        assert not [line for line in lines if line.endswith(" ")]
    (line,) = [line for line in omni("units", "list").out.splitlines() if line.startswith("euler ")]
    assert line.split()[1] == "omniavatar"


def test_everything_is_there_as_json(omni: Omni) -> None:
    found = json.loads(omni("units", "list", "--json").out)
    assert {unit.name for unit in BUILTIN} <= {unit["name"] for unit in found["units"]}
    assert {"name": "original", "package": "omniavatar"}.items() <= found["presets"][1].items()
    shown = json.loads(omni("units", "show", "fixed-frames", "--json").out)
    assert shown in found["units"]
    overlap = {"value": "INTEGER", "required": False, "default": "13", "bounds": "from 1"}
    assert overlap.items() <= shown["settings"]["overlap"].items()
    assert shown["provides"] == ["given_latents"]
    plan = json.loads(omni("units", "plan", "default+teacache(threshold=9)", "--json").out)
    (cache,) = [unit for unit in plan["units"] if unit["name"] == "teacache"]
    assert cache["settings"]["threshold"] == 9
    assert "steps skipped" in cache["will"][0]


def test_show_has_settings_inputs_and_data_flow(omni: Omni) -> None:
    lines = [line.split() for line in omni("units", "show", "fixed-frames").out.splitlines()]
    overlap = next(line for line in lines if line[:1] == ["overlap"])
    assert overlap[:5] == ["overlap", "INTEGER", "13", "from", "1"]
    assert ["reads", "previous.frames,", "[image_latent]"] in lines
    assert ["makes", "given_latents"] in lines
    image = next(
        line for line in omni("units", "show", "reference-image").out.splitlines() if line.startswith("image ")
    )
    assert image.split()[1] == "IMAGE"


def test_square_brackets_in_descriptions_are_shown(omni: Omni) -> None:
    assert "sizes to choose from, [height, width] in pixels" in omni("units", "show", "reference-image").out


def test_plan_shows_the_order_and_the_hooks(omni: Omni) -> None:
    out = omni("units", "plan", "default+teacache(threshold=0.2)-lora").out
    assert omni("units", "plan", "--units", "default+teacache(threshold=0.2)-lora").out == out
    order = [out.index(f"── {name}") for name in ("prompt", "reference-image", "vae-decode", "write-video")]
    assert order == sorted(order)
    assert "teacache(threshold=0.2)" in out
    assert "run_blocks (wrapper)" in out
    assert "lora" not in out.partition("\n")[2]


def test_plan_shows_what_units_know_beforehand(omni: Omni) -> None:
    out = omni(
        "units", "plan", "default+teacache(threshold=9)+guidance-interval(low=0.9)+schedule(steps=6, shift=5)"
    ).out
    assert "will dit: 3 of 6 steps skipped; computed: 1, 4, 6; guidance-interval changes at 4" in out
    assert "will guidance in 3 of 6 steps: 1-3" in out


def test_plan_of_a_configuration_whose_models_are_not_here(omni: Omni, folder: Path) -> None:
    text = "units: default+teacache\nmodels: [no.safetensors]\nsettings: {schedule: {steps: 7}}\n"
    (folder / "my.yaml").write_text(text)
    outcome = omni("units", "plan", "--config", "my.yaml")
    assert (outcome.code, outcome.err) == (0, "")
    assert "schedule(steps=7)" in outcome.out
    assert "will depend on the models: no model at " in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "teacahe"), "unknown unit 'teacahe'; did you mean 'teacache'?"),
        (("plan", "--config", "typo.yaml"), "the configuration: unknown unit 'eulr'; did you mean 'euler'?"),
        (("plan", "default+teacahe"), "unknown unit or preset 'teacahe'; did you mean 'teacache'?"),
        (("plan", "default-write-video-vae-decode-vae-decode"), "'-vae-decode': the plan has no unit 'vae-decode'"),
        (("plan", "schedule(steps=0)"), "unit 'schedule': steps = 0: input should be greater than or equal to 1"),
    ],
)
def test_bad_names_are_one_line(omni: Omni, folder: Path, arguments: tuple[str, ...], message: str) -> None:
    (folder / "typo.yaml").write_text("settings: {eulr: {steps: 3}}")
    outcome = omni("units", *arguments)
    assert outcome.code == 2
    assert outcome.error.startswith(message)


def test_units_of_plugins_are_shown_like_our_own(omni: Omni, install: Callable[[str, str], None]) -> None:
    install("omniavatar_sparkle_a", PLUGIN)
    (line,) = [line for line in omni("units", "list").out.splitlines() if line.startswith("sparkle ")]
    assert line.split() == ["sparkle", "omniavatar_sparkle_a", "Adds", "[red]", "stars."]
    (plugin,) = [line for line in omni("plugins", "list").out.splitlines() if line.startswith("omniavatar_sparkle_a")]
    assert plugin.split()[-3:] == ["sparkle", "sparkling", "active"]
    (facts,) = [one for one in json.loads(omni("plugins", "list", "--json").out) if one["units"] == ["sparkle"]]
    assert (facts["package"], facts["presets"], facts["is_active"]) == ("omniavatar_sparkle_a", ["sparkling"], True)
    assert "default+sparkle(count=7)" in omni("units", "list").out
    shown = omni("units", "show", "sparkle").out
    assert "Adds [red] stars." in shown
    assert "stars, [left, right]" in shown
    assert "sparkle(count=7)" in omni("units", "plan", "sparkling").out


def test_show_says_what_a_solver_brings_and_suggests_and_what_it_once_had(omni: Omni) -> None:
    out = " ".join(omni("units", "show", "unipc").out.split())
    assert "brings schedule replaces euler suggests schedule.steps=25, schedule.sigma_max=0.999" in out
    assert "once had steps (now schedule.steps), shift (now schedule.shift)" in out
    shown = json.loads(omni("units", "show", "unipc", "--json").out)
    assert (shown["brings"], shown["suggests"]["schedule"]["steps"]) == (["schedule"], 25)
    assert shown["moved"]["steps"] == "schedule.steps"
