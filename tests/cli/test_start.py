"""What wins over what: `--hp`, the command line, plan expressions, the file, config.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from omniavatar.cli.start import early_options, start
from omniavatar.distributed.world import World
from omniavatar.engine.plan import Catalog, resolve
from omniavatar.errors import InputError, PlanError
from omniavatar.opening import FinalConfig
from tests.test_original import INFERENCE


def final(
    *arguments: str, flags: dict[str, Any] | None = None, settings: dict[str, dict[str, Any]] | None = None
) -> FinalConfig:
    """The configuration of a run; `flags` and `settings` are what further options say."""
    early = {**early_options(list(arguments), str), "help": True}
    return start(early).final(flags or {}, settings or {})


def settings_of(config: FinalConfig, catalog: Catalog) -> dict[str, dict[str, Any]]:
    """What each unit gets, without a checkpoint's settings."""
    resolved = resolve(config.chosen, catalog, *config.layers)
    return {unit: {name: setting.value for name, setting in values.items()} for unit, values in resolved.items()}


def test_hp_wins_over_the_command_line_over_the_file_over_config_json(folder: Path, catalog: Catalog) -> None:
    experiment = folder / INFERENCE["exp_path"]
    experiment.mkdir(parents=True)
    stored = {"num_steps": 1, "guidance_scale": 1, "max_tokens": 1001, "silence_duration_s": 1}
    (experiment / "config.json").write_text(json.dumps(stored))
    file = {key: value for key, value in INFERENCE.items() if key != "silence_duration_s"}
    (folder / "inference.yaml").write_text(yaml.safe_dump({**file, "num_steps": 2, "guidance_scale": 2, "seed": 2}))
    config = final(
        *("--config", "inference.yaml", "--units", "default+schedule(steps=3)+guidance(scale=3)"),
        *("--hp", "num_steps=5,seed=5"),
        flags={"seed": 4, "fps": 4},
        settings={"schedule": {"steps": 4}, "guidance": {"scale": 4}},
    )
    settings = settings_of(config, catalog)
    assert settings["schedule"]["steps"] == 5
    assert settings["guidance"]["scale"] == 4
    assert settings["fixed-frames"]["max_tokens"] == 30000
    assert settings["audio"]["silence"] == 1
    assert (config.seed, config.fps) == (5, 4)


def test_precedence_in_our_schema(folder: Path, catalog: Catalog) -> None:
    (folder / "mine.yaml").write_text(
        "units: default+schedule(steps=3, shift=3)\nsettings: {schedule: {steps: 2, shift: 2}}\n"
    )

    def schedule(*arguments: str, **options: Any) -> dict[str, Any]:
        return settings_of(final("--config", "mine.yaml", *arguments, **options), catalog)["schedule"]

    assert schedule() == {"steps": 3, "shift": 3}
    options: dict[str, dict[str, Any]] = {"schedule": {"steps": 4}}
    assert schedule(settings=options) == {"steps": 4, "shift": 3}
    assert schedule("--hp", "num_steps=5", settings=options) == {"steps": 5, "shift": 3}
    assert schedule("--units", "default") == {"steps": 2, "shift": 2}


@pytest.mark.parametrize(
    ("units", "hp", "is_in"),
    [
        ("default", "tea_cache_l1_thresh=0.2", True),
        ("default+teacache", "tea_cache_l1_thresh=0", False),
        ("default+teacache", "num_steps=3", True),
    ],
)
def test_hp_switches_teacache(folder: Path, catalog: Catalog, units: str, hp: str, is_in: bool) -> None:
    settings = settings_of(final("--units", units, "--hp", hp), catalog)
    assert ("teacache" in settings) is is_in
    assert settings.get("teacache", {}).get("threshold") == (0.2 if "0.2" in hp else None)


def test_hp_reaches_the_schedule_whatever_the_solver_is_and_is_refused_where_nothing_takes_it(
    folder: Path, catalog: Catalog
) -> None:
    config = final("--units", "default-euler+unipc", "--hp", "num_steps=3")
    assert settings_of(config, catalog)["schedule"] == {"steps": 3, "sigma_max": 0.999}
    with pytest.raises(PlanError, match=r"--hp: nothing takes audio.silence: unit 'audio' is not in the plan; leave"):
        final("--units", "default-audio-audio-adapter", "--hp", "silence_duration_s=1")
    with pytest.raises(InputError, match="--hp: 'num_steps' is given twice"):
        final("--hp", "num_steps=3,num_steps=4")


@pytest.mark.parametrize("arguments", [("--hp", "seed=-1"), ("--hp", "seed=random"), ("--config", "chance.yaml")])
def test_a_random_seed_is_drawn_once_and_told(
    folder: Path, caplog: pytest.LogCaptureFixture, arguments: tuple[str, str]
) -> None:
    (folder / "chance.yaml").write_text("seed: random\nmodels_dir: package:assets/tiny\n")
    with caplog.at_level("WARNING"):
        config = final(*arguments)
    assert 0 <= config.seed < 2**32
    assert caplog.messages == [f"the seed is {config.seed}"]
    assert final(*arguments).seed != config.seed
    assert final(*arguments, flags={"seed": "7"}).seed == 7, "ranks are told by --seed"
    assert 0 <= final(flags={"seed": "random"}).seed < 2**32
    several = replace(start({**early_options(list(arguments), str), "help": True}), world=World(size=2))
    with pytest.raises(InputError, match="each of 2 ranks would draw another seed; give one with --seed NUMBER"):
        several.final({}, {})


def test_early_options_are_found_among_all_others() -> None:
    arguments = ["--prompt", "x", "--config=a", "-o", "y", "--models_dir", "z", "-v", "--model", "1", "-v"]
    early = early_options(arguments, lambda name: name.replace("_", "-"))
    expected = {
        "units": None,
        "config": "a",
        "hp": None,
        "models": ("1",),
        "models_dir": "z",
        "help": False,
        "verbose": 2,
    }
    assert {name: early[name] for name in expected} == expected
