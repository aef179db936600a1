"""Configurations that change another one, and plans that change the configuration's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omniavatar.config import RunConfig, changed_plan, find_config, parse_config, validated
from omniavatar.config_base import read_config
from omniavatar.errors import CheckpointError, InputError
from omniavatar.opening import configured, open_engine
from omniavatar.training.diffusion import DiffusionConfig

TINY = "default+smooth-borders"


def read(path: Path) -> RunConfig:
    return parse_config(read_config(path), path)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("units", "plan"),
    [
        ("+teacache", "a+b+teacache"),
        (" +teacache-b", "a+b+teacache-b"),
        ("-b", "a+b -b"),
        ("c", "c"),
        ("c+d", "c+d"),
        (None, None),
    ],
)
def test_a_sign_in_front_changes_a_plan(units: str | None, plan: str | None) -> None:
    assert changed_plan("a+b", units) == plan


def test_changes_alone_are_changes_of_the_default() -> None:
    assert parse_config({"units": "+teacache"}, "test").units == "default+teacache"
    assert parse_config({"units": ["+teacache", "-lora", "unipc"]}, "test").units == "default+teacache-lora+unipc"


def test_an_engine_adds_units_to_those_of_its_configuration() -> None:
    plan = open_engine(units="+teacache-lora").plan
    assert {"teacache", "smooth-borders"} <= set(plan.names)
    assert "lora" not in plan
    assert "smooth-borders" not in open_engine(units="default+teacache").plan


def test_a_base_is_changed_name_by_name(tmp_path: Path) -> None:
    written(
        tmp_path, "a.yaml", "base: tiny\nseed: 7\nsettings: {schedule: {steps: 4, shift: 3}}\nmodels: [here:a.pt]\n"
    )
    path = written(tmp_path, "b.yaml", "base: a.yaml\nunits: +teacache\nfps: 12\nsettings: {schedule: {steps: 5}}\n")
    found = read(path)
    assert (found.base, found.units, found.seed, found.fps) == ("tiny", f"{TINY}+teacache", 7, 12)
    assert found.settings == {"teacache": {"threshold": 0.03}, "schedule": {"steps": 5, "shift": 3}}
    assert found.models_dir == "package:assets/tiny"
    assert [entry.path for entry in found.models][-2:] == ["wav2vec2", f"{tmp_path}/a.pt"]
    whole = written(tmp_path, "c.yaml", "base: a.yaml\nunits: [default, teacache]\n")
    assert read(whole).units == "default+teacache"


def test_a_base_lies_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "deep/a.yaml", "seed: 1\n")
    written(tmp_path, "a.yaml", "seed: 2\n")
    monkeypatch.chdir(tmp_path)
    assert read(written(tmp_path, "deep/b.yaml", "base: a.yaml\n")).seed == 1
    assert configured({"base": "a.yaml"}, source="test")[0].seed == 2


def test_a_base_may_be_one_of_the_original_program(tmp_path: Path) -> None:
    written(tmp_path, "inference.yaml", "vae_path: v.pth\ntext_encoder_path: t.pth\nnum_steps: 9\n")
    found = read(written(tmp_path, "b.yaml", "base: inference.yaml\nunits: +teacache\n"))
    assert (found.units, found.settings["schedule"]["steps"]) == ("default+teacache", 9)
    assert [entry.path for entry in found.models] == ["t.pth", "v.pth"]


def test_here_is_the_folder_of_the_configuration(tmp_path: Path) -> None:
    text = "models_dir: here:m\nmodels: [here:a.pt, dit2=here:b.pt, {path: [here:c, d]}]\ntables: [here:t.toml]\n"
    found = read(written(tmp_path, "a.yaml", text))
    assert (found.models_dir, found.tables) == (f"{tmp_path}/m", (f"{tmp_path}/t.toml",))
    paths: list[Any] = [f"{tmp_path}/a.pt", f"{tmp_path}/b.pt", (f"{tmp_path}/c", "d")]
    assert [entry.path for entry in found.models] == paths
    assert found.models[1].role == "dit2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: a.yaml", "a.yaml: base = 'a.yaml' leads back to "),
        ("base: b.yaml", "b.yaml: base = 'a.yaml' leads back to "),
        ("base: tny", "there is no configuration tny; did you mean 'tiny'?"),
        ("base: 3", "a.yaml: base = 3: give the name of a configuration, or a file"),
        ("base: [tiny]", "a.yaml: base = ['tiny']: give the name"),
        ("base: tiny\nmodels: a.pt", "a.yaml: models = 'a.pt': give a list: ['a.pt']"),
        ("base: tiny\nunits: {a: b}", "a.yaml: units = {'a': 'b'}: input should be a valid string"),
        ("base: no/such.yaml", "the configuration file no/such.yaml does not exist"),
        ("base: tiny\nsettings: 3", "a.yaml: settings = 3"),
    ],
)
def test_what_is_no_base_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    written(tmp_path, "b.yaml", "base: a.yaml\n")
    with pytest.raises(InputError) as caught:
        read(written(tmp_path, "a.yaml", text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_without_models_says_how_to_get_some() -> None:
    with pytest.raises(CheckpointError, match="names no model files; add models: to it, or base: tiny"):
        open_engine({"units": "default"})


def test_a_training_configuration_has_a_base_too(tmp_path: Path) -> None:
    text = "base: omniavatar-1.3b-lora\ndata: {path: clips}\ntrainer: {steps: 7}\n"
    path = written(tmp_path, "mine.yaml", text)
    found = validated(DiffusionConfig, read_config(path, "train"), path)
    theirs = validated(DiffusionConfig, read_config(find_config("omniavatar-1.3b-lora", "train"), "train"), "base")
    assert (found.trainer.steps, str(found.data.path)) == (7, "clips")
    assert found.trainer.learning_rate == theirs.trainer.learning_rate
    assert (found.models, found.units, found.settings) == (theirs.models, theirs.units, theirs.settings)


def test_an_old_name_of_a_setting_is_stronger_than_todays_in_the_base(tmp_path: Path) -> None:
    for first, last in (("schedule", "euler"), ("euler", "schedule")):
        written(tmp_path, "a.yaml", f"base: tiny\nsettings: {{{first}: {{steps: 4}}, guidance: {{scale: 2}}}}\n")
        path = written(tmp_path, "b.yaml", f"base: a.yaml\nsettings: {{{last}: {{steps: 5}}}}\n")
        plan = open_engine(path).plan
        (schedule,) = [unit for unit in plan.units if unit.name == "schedule"]
        assert (schedule.settings.steps, plan.origins["schedule"]["steps"]) == (5, f"file {path}")
