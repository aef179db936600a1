"""What wins over what: `--hp`, the command line, plan expressions, the file, config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from omniavatar.cli.start import early_options, start
from omniavatar.config import RunConfig
from tests.test_original import INFERENCE


def final(
    *arguments: str, flags: dict[str, Any] | None = None, settings: dict[str, dict[str, Any]] | None = None
) -> RunConfig:
    """The configuration of a run; `flags` and `settings` are what further options say."""
    early = {**early_options(list(arguments), str), "help": True}
    return start(early).final(flags or {}, settings or {})


def test_hp_wins_over_the_command_line_over_the_file_over_config_json(folder: Path) -> None:
    experiment = folder / INFERENCE["exp_path"]
    experiment.mkdir(parents=True)
    stored = {"num_steps": 1, "guidance_scale": 1, "max_tokens": 1001, "silence_duration_s": 1}
    (experiment / "config.json").write_text(json.dumps(stored))
    file = {key: value for key, value in INFERENCE.items() if key != "silence_duration_s"}
    (folder / "inference.yaml").write_text(yaml.safe_dump({**file, "num_steps": 2, "guidance_scale": 2, "seed": 2}))
    config = final(
        *("--config", "inference.yaml", "--units", "default+euler(steps=3)+guidance(scale=3)"),
        *("--hp", "num_steps=5,seed=5"),
        flags={"seed": 4, "fps": 4},
        settings={"euler": {"steps": 4}, "guidance": {"scale": 4}},
    )
    assert config.settings["euler"]["steps"] == 5
    assert config.settings["guidance"]["scale"] == 4
    assert config.settings["fixed-frames"]["max_tokens"] == 30000
    assert config.settings["audio"]["silence"] == 1
    assert (config.seed, config.fps) == (5, 4)


def test_precedence_in_our_schema(folder: Path) -> None:
    (folder / "mine.yaml").write_text(
        "units: default+euler(steps=3, shift=3)\nsettings: {euler: {steps: 2, shift: 2}}\n"
    )
    assert final("--config", "mine.yaml").settings["euler"] == {"steps": 3, "shift": 3}
    options: dict[str, dict[str, Any]] = {"euler": {"steps": 4}}
    assert final("--config", "mine.yaml", settings=options).settings["euler"] == {"steps": 4, "shift": 3}
    hp = ("--config", "mine.yaml", "--hp", "num_steps=5")
    assert final(*hp, settings=options).settings["euler"] == {"steps": 5, "shift": 3}
    assert final("--config", "mine.yaml", "--units", "default").settings["euler"] == {"steps": 2, "shift": 2}


@pytest.mark.parametrize(
    ("units", "hp", "is_in"),
    [
        ("default", "tea_cache_l1_thresh=0.2", True),
        ("default+teacache", "tea_cache_l1_thresh=0", False),
        ("default+teacache", "num_steps=3", True),
    ],
)
def test_hp_switches_teacache(folder: Path, units: str, hp: str, is_in: bool) -> None:
    config = final("--units", units, "--hp", hp)
    assert ("teacache" in config.units.split("+")) is is_in
    assert config.settings.get("teacache", {}).get("threshold") == (0.2 if "0.2" in hp else None)


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
