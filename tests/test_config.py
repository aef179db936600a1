"""Configurations: fields, where files are looked for, and what is said about missing ones."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from omniavatar.checkpoints import Registry
from omniavatar.config import RunConfig, find_config, merge_settings, parse_config, paths_at_home, read_yaml
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.errors import CheckpointError, InputError
from omniavatar.resources import asset, data_folder
from omniavatar.training.diffusion import DiffusionConfig

PUBLISHED = ("omniavatar-14b", "omniavatar-1.3b")


def config(**fields: Any) -> RunConfig:
    return parse_config(fields, "test")


def missing(**fields: Any) -> str:
    """What is said about the missing files of a configuration."""
    with pytest.raises(CheckpointError) as caught:
        config(**fields).model_files()
    return str(caught.value)


def test_short_forms() -> None:
    short = config(units=["default", "teacache"], models=["a.pth"], settings={"euler": None})
    assert short.units == "default+teacache"
    assert (short.models[0].path, short.models[0].repo) == ("a.pth", None)
    assert short.settings == {"euler": {}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modles": []}, "test: unknown field 'modles'; did you mean 'models'?"),
        ({"models": [{"pth": "a"}]}, "test: 'models.0.path' is required"),
        ({"models": [{"path": []}]}, "test: models.0.path"),
        ({"models": "a.pth"}, "test: models = 'a.pth': give a list: ['a.pth']"),
        ({"seed": 2**63}, "test: seed = 9223372036854775808: input should be less than"),
        ({"seed": 10**5000}, "test: seed = a number of 16610 bits: "),
        ({"seed": -2}, "test: seed = -2: input should be greater than"),
        ({"seed": True}, "test: seed = True: true and false are no numbers"),
        ({"fps": True}, "test: fps = True: true and false are no numbers"),
        ({"settings": {"euler": 3}}, "test: settings.euler = 3: input should be a valid dict"),
        ({3: "x"}, "test: unknown field '3'"),
    ],
)
def test_faults_name_the_field(fields: dict[Any, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(fields, "test")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [\nb: }", "line 2"),
        ("seed: 1\nseed: 2", "'seed' is given twice, the second time in line 2"),
        ("seed: " + "9" * 10_000, "the number in line 1 is too large"),
        ("units: " + "[" * 5000, "more than 40 lists or mappings stand inside each other"),
    ],
)
def test_yaml_faults_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"cannot read the configuration .*{message}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_seed_may_be_left_to_chance() -> None:
    assert [config(seed=seed).seed for seed in (-1, "random", "7", 2**63 - 1)] == [-1, -1, 7, 2**63 - 1]


def test_a_configuration_is_found_by_path_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = data_folder("configs") / "tiny.yaml"
    assert [find_config(name) for name in ("tiny", "tiny.yaml", "configs/tiny.yaml")] == [packaged] * 3
    (tmp_path / "tiny.yaml").write_text("{}")
    assert find_config("tiny.yaml") == Path("tiny.yaml")
    with pytest.raises(InputError, match="there is no configuration tinny; did you mean 'tiny'"):
        find_config("tinny")
    for name, message in {
        "elsewhere/tiny.yaml": "the configuration file elsewhere/tiny.yaml does not exist; did you mean 'tiny'?",
        "/no/such.yaml": "the configuration file /no/such.yaml does not exist; packaged ones: omniavatar-1.3b, ",
        str(tmp_path): f"the configuration file {tmp_path} is a folder",
    }.items():
        with pytest.raises(InputError) as caught:
            find_config(name)
        assert str(caught.value).startswith(message)


def test_model_paths_start_at_models_dir(tmp_path: Path) -> None:
    for name in ("a.pth", "b-1.pth", "b-2.pth"):
        (tmp_path / name).touch()
    found = config(
        models_dir=str(tmp_path), models=["a.pth", ["b-1.pth", "b-2.pth"], "b-*.pth", str(tmp_path / "a.pth")]
    )
    at = str(tmp_path) + "/"
    assert found.model_files() == [f"{at}a.pth", [f"{at}b-1.pth", f"{at}b-2.pth"], f"{at}b-*.pth", f"{at}a.pth"]


def test_the_packaged_model_is_found_from_anywhere() -> None:
    tiny = parse_config(read_yaml(find_config("tiny")), "tiny")
    assert tiny.model_files()[0] == str(asset("tiny", "transformer.safetensors"))


def test_one_missing_file_is_one_line(tmp_path: Path) -> None:
    text = missing(models_dir=str(tmp_path), models=["a.pth"])
    assert text == f"no model at {tmp_path}/a.pth; say where it is with --model, or with --models-dir for all of them"


def test_missing_files_come_with_the_commands_that_fetch_them(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "here.pth").touch()
    models = [
        {"path": "net/here.pth", "beside": ["words"], "repo": "some/net"},
        {"path": ["net/1.pth", "net/2.pth"], "repo": "some/net"},
        {"path": "ears", "repo": "other/ears", "files": ["a.json", "b.safetensors"]},
        {"path": "deep/er/c.pth", "repo": "third/c"},
    ]
    assert missing(models_dir=str(tmp_path), models=models).splitlines() == [
        f"5 model files are missing; looked in {tmp_path} for",
        "  net/words",
        "  net/1.pth",
        "  net/2.pth",
        "  ears",
        "  deep/er/c.pth",
        "download them with",
        f"  hf download some/net --local-dir {tmp_path}/net",
        f"  hf download other/ears a.json b.safetensors --local-dir {tmp_path}/ears",
        f"  hf download third/c --local-dir {tmp_path}/deep/er",
        "or say where they are with --models-dir",
    ]


def test_commands_are_safe_to_paste() -> None:
    text = missing(models_dir="/no/my models; rm x", models=[{"path": "net/a.pth", "repo": "some/net"}])
    assert "--local-dir '/no/my models; rm x/net'" in text


def test_settings_are_merged_by_unit() -> None:
    layers = ({"a": {"x": 1, "y": 1}}, {"b": {"z": 2}}, {"a": {"y": 3}})
    assert merge_settings(*layers) == {"a": {"x": 1, "y": 3}, "b": {"z": 2}}
    assert layers[0] == {"a": {"x": 1, "y": 1}}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_sound(name: str, catalog: Catalog) -> None:
    published = parse_config(read_yaml(find_config(name)), name)
    assert all(entry.repo for entry in published.models)
    assert published.settings.keys() <= catalog.units.keys()
    plan = build_plan("default+teacache", catalog, published.settings)
    assert len(plan.units) == 13
    settings = {unit.name: unit.settings for unit in plan.units}
    assert (settings["schedule"].steps, settings["guidance"].scale, settings["guidance"].audio_scale) == (50, 4.5, None)
    assert (settings["fixed-frames"].max_tokens, settings["fixed-frames"].overlap) == (30000, 13)
    assert settings["reference-image"].sizes == ((400, 720), (720, 720), (720, 400))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_name_files_that_the_registry_knows(name: str) -> None:
    """Each repository and file is the one that a row of the tables comes from."""
    rows = Registry.builtin().rows
    places = {f"{row.repo}:{row.file}" for row in rows} | {place for row in rows for place in row.also}
    for entry in parse_config(read_yaml(find_config(name)), name).models:
        repo, file = str(entry.repo), Path(entry.parts[0]).name
        known = [place.removeprefix(f"{repo}:") for place in places if place.startswith(f"{repo}:")]
        assert any(fnmatch(file, pattern or Path(repo).name) for pattern in known), file


def test_the_users_folder_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in configurations of training; not in what only looks like a path."""
    monkeypatch.setenv("HOME", "/home/ada")
    run = config(models=["~/a.pth", ["~/b1", "b2"], {"path": "~/c"}, "dit2=~/d"], tables=["~/t.toml"])
    assert [entry.path for entry in run.models] == [
        "/home/ada/a.pth",
        ("/home/ada/b1", "b2"),
        "/home/ada/c",
        "/home/ada/d",
    ]
    assert run.tables == ("/home/ada/t.toml",)
    content = {
        "output": "~/out",
        "cache": "~/cache",
        "data": {"path": "~/clips", "prompt": "~/ is no path", "generated": {}},
        "start": {"dit": {"weights": "~/w"}},
        "device": "cpu",
        "nonsense": ["~"],
    }
    assert paths_at_home(DiffusionConfig, content) == {
        "output": "/home/ada/out",
        "cache": "/home/ada/cache",
        "data": {
            "path": "/home/ada/clips",
            "prompt": "~/ is no path",
            "generated": {},
        },
        "start": {"dit": {"weights": "/home/ada/w"}},
        "device": "cpu",
        "nonsense": ["~"],
    }
