"""The command line, YAML and Python are asked the same questions, and give every unit the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from omniavatar.cli.run import ask, run
from omniavatar.engine.engine import Engine
from omniavatar.engine.scopes import Request
from omniavatar.opening import open_engine
from omniavatar.resources import asset

Settings = Mapping[str, Mapping[str, Any]]
UNITS = [
    "default",
    "original",
    "original+vae-decode(tiled=false)",
    "default+teacache(threshold=0.2)",
    "teacache(threshold=0.2)+original",
    "default-euler+unipc",
    "default-euler+unipc(shift=2)",
]
SETTINGS: list[dict[str, dict[str, Any]]] = [
    {},
    {"vae-decode": {"tiled": False}, "reference-image": {"fit": "cover"}},
    {"guidance": {"scale": 3, "audio_scale": None}, "prompt": {"negative": "blurred, dark (very)"}},
    {"reference-image": {"sizes": [[64, 64], [64, 128]]}, "fixed-frames": {"max_tokens": 500}},
]
SCHEDULE: dict[str, dict[str, Any]] = {"schedule": {"steps": 3, "shift": 4.5}}
OLD_NAMES: dict[str, dict[str, Any]] = {"euler": {"steps": 3, "shift": 4.5}}
MODELS = {
    "models_dir": "package:assets/tiny",
    "models": ["transformer.safetensors", "vae.safetensors", "text_encoder.safetensors", "wav2vec2"],
}


def by_command(*arguments: str) -> Engine:
    """The engine of `omni run`."""
    with run.make_context("run", list(arguments)) as ctx:
        maker, _ = ask(ctx, ctx.params)
        return maker.engine(maker.world, torch.device("cpu"))


def options(settings: Settings) -> list[str]:
    """Settings as options."""
    return [
        f"--{unit}.{name.replace('_', '-')}={value if isinstance(value, str) else json.dumps(value)}"
        for unit, values in settings.items()
        for name, value in values.items()
    ]


def answer(engine: Engine) -> dict[str, Any]:
    """What every unit of an engine works with, and where it comes from."""
    plan = engine.plan
    return {unit.name: (unit.settings.model_dump(), plan.origins[unit.name]) for unit in plan.units}


def agreed(*engines: Engine) -> dict[str, Any]:
    """What all engines work with, in the same order of units."""
    first, *others = map(answer, engines)
    for other in others:
        assert list(other.items()) == list(first.items())
    return first


def value(found: Mapping[str, Any], unit: str, name: str) -> tuple[Any, str]:
    settings, origins = found[unit]
    return settings[name], origins[name]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`write(fields)` writes a configuration of the built-in avatar; returns its name."""
    monkeypatch.chdir(tmp_path)

    def config(**fields: Any) -> str:
        Path("mine.yaml").write_text(yaml.safe_dump({**MODELS, **fields}))
        return "mine.yaml"

    return config


@pytest.mark.slow
@pytest.mark.parametrize("units", UNITS)
def test_a_plan_gives_the_same_settings_through_all_doors(units: str, write: Any) -> None:
    named = write()
    found = agreed(
        by_command("--config", named, "--units", units),
        open_engine(named, units=units),
        open_engine(write(units=units)),
        open_engine({**MODELS, "units": units}),
    )
    if "teacache" in found:
        assert value(found, "teacache", "threshold") == (0.2, "plan")
    assert value(found, "schedule", "steps") == (10, "checkpoint omniavatar-tiny")
    assert value(found, "schedule", "shift") == (
        (2, "plan") if "shift=2" in units else (3, "checkpoint omniavatar-tiny")
    )
    assert value(found, "schedule", "sigma_max") == ((0.999, "unit unipc") if "unipc" in units else (1, "default"))
    if units == "original":
        assert value(found, "vae-decode", "tiled") == (True, "preset original")


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("units", UNITS[:3])
def test_a_file_gives_the_same_settings_through_all_doors(units: str, settings: Settings, write: Any) -> None:
    named = write(units=units, settings=settings)
    found = agreed(by_command("--config", named), open_engine(named), open_engine(Path(named)))
    for unit, values in settings.items():
        for name in values:
            if name not in ("tiled", "fit") or units != "original+vae-decode(tiled=false)":
                assert value(found, unit, name)[1] == "file mine.yaml", "a preset is weaker"


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("units", UNITS)
def test_explicit_settings_win_through_all_doors(units: str, settings: dict[str, Any], write: Any) -> None:
    cache = {"teacache": {"threshold": 0.5}} if "teacache" in units else {}
    settings = {**settings, **SCHEDULE, **cache}
    weak = {"guidance": {"scale": 7}, "schedule": {"steps": 2}, "vae-decode": {"tiled": True}}
    named = write(settings=weak)
    found = agreed(
        by_command("--config", named, "--units", units, *options(settings)),
        open_engine(named, units=units, settings=settings),
        open_engine(write(units=units, settings=weak), settings=settings),
    )
    for unit, values in settings.items():
        for name, given in values.items():
            expected = tuple(map(tuple, given)) if isinstance(given, list) else given
            assert value(found, unit, name) == (expected, "settings")


@pytest.mark.parametrize("units", ["default", "default-euler+unipc"])
def test_old_names_of_settings_work_through_all_doors(units: str, write: Any) -> None:
    named = write(units=units, settings=OLD_NAMES)
    found = agreed(by_command("--config", named), open_engine(named))
    assert value(found, "schedule", "steps") == (3, "file mine.yaml")
    plain = write(units=units)
    found = agreed(by_command("--config", plain, *options(OLD_NAMES)), open_engine(plain, settings=OLD_NAMES))
    assert [value(found, "schedule", name) for name in ("steps", "shift")] == [(3, "settings"), (4.5, "settings")]
    by_hp = answer(by_command("--config", named, "--unipc.steps", "4", "--hp", "num_steps=5"))
    assert value(by_hp, "schedule", "steps") == (5, "--hp")
    both = answer(by_command("--config", named, "--euler.steps", "4", "--schedule.steps", "6"))
    assert value(both, "schedule", "steps") == (6, "settings")


def test_old_names_of_settings_work_for_one_run(write: Any) -> None:
    engine = open_engine(write())
    with engine.start(Request({"image": asset("demo", "portrait.png")}, seconds=0.2), settings=OLD_NAMES) as begun:
        (schedule,) = [unit for unit in begun.plan.units if unit.name == "schedule"]
        assert (schedule.settings.steps, begun.plan.origins["schedule"]["steps"]) == (3, "settings")


def test_the_configuration_of_the_original_program_works_through_all_doors(write: Any) -> None:
    content = {
        "dit_path": str(asset("tiny", "transformer.safetensors")),
        "text_encoder_path": str(asset("tiny", "text_encoder.safetensors")),
        "vae_path": str(asset("tiny", "vae.safetensors")),
        "wav2vec_path": str(asset("tiny", "wav2vec2")),
        "num_steps": 7,
        "tea_cache_l1_thresh": 0.3,
        "max_hw": 720,
        "image_sizes_720": [[64, 96]],
    }
    Path("inference.yaml").write_text(yaml.safe_dump(content))
    found = agreed(by_command("--config", "inference.yaml"), open_engine("inference.yaml"))
    assert value(found, "schedule", "steps") == (7, "file inference.yaml")
    assert value(found, "teacache", "threshold") == (0.3, "file inference.yaml")
    assert value(answer(open_engine(content)), "reference-image", "sizes") == (((64, 96),), "file config")
    hp = by_command("--config", "inference.yaml", "--hp", "num_steps=4,tea_cache_l1_thresh=0")
    assert value(answer(hp), "schedule", "steps") == (4, "--hp")
    assert "teacache" not in hp.plan
