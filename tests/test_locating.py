"""Where the models of a configuration are found."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.config import RunConfig, packaged_configs
from omniavatar.config_base import read_config
from omniavatar.errors import CheckpointError, InputError
from omniavatar.locating import Places, folders_of_user, located
from omniavatar.resources import registry_tables
from tests.checkpoints.test_library import cached, write
from tests.checkpoints.tiny import write_base, write_delta, write_table

ENTRY = {"path": "net/a.safetensors", "serves": {"rows": ["tiny"]}}


@pytest.fixture(autouse=True)
def quiet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The table of the tiny transformer is known, and the cache of Hugging Face is the test's own."""
    registry = Registry([*registry_tables(), write_table(tmp_path / "tiny.toml")])
    monkeypatch.setattr("omniavatar.locating.registry_of", lambda config: registry)
    monkeypatch.setattr("omniavatar.locating.hub_cache", lambda: tmp_path / "hub")
    monkeypatch.delenv("OMNI_MODELS", raising=False)
    return tmp_path / "hub"


def config(tmp_path: Path, *entries: Any, **fields: Any) -> RunConfig:
    return RunConfig(models_dir=str(tmp_path / "pretrained"), models=entries or (ENTRY,), **fields)


def path(found: RunConfig) -> str:
    (file,) = found.model_files()
    return str(file)


def test_its_own_path_comes_first_and_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = config(tmp_path, search=(str(tmp_path / "other"), str(tmp_path / "third")))
    write(tmp_path / "other" / "better.safetensors", torch.bfloat16)
    third = write(tmp_path / "third" / "net" / "a.safetensors")
    assert path(located(asked)) == str(third)
    write(tmp_path / "pretrained" / "net" / "a.safetensors")
    assert located(asked).models == asked.models  # as it stands in the configuration
    assert not caplog.records


def test_then_what_was_downloaded_into_the_cache(tmp_path: Path, quiet_home: Path) -> None:
    entry = {**ENTRY, "path": "net/sub/a.safetensors", "repo": "some/net", "beside": ["tok"]}
    file = cached(quiet_home, "some/net", "sub/a.safetensors")
    with pytest.raises(CheckpointError, match="tok"):
        located(config(tmp_path, entry))
    (file.parent / "tok").mkdir()
    assert path(located(config(tmp_path, entry))) == str(file)


def test_then_whatever_serves_by_content_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    comfy = tmp_path / "models" / "diffusion_models"
    write(comfy / "eight.safetensors", torch.float8_e4m3fn)
    best = write(comfy / "half.safetensors", torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        found = located(config(tmp_path, search=(str(tmp_path / "models"),)))
    assert path(found) == str(best)
    text = f"{best} (bfloat16) is used as net/a.safetensors; {comfy / 'eight.safetensors'} would serve too"
    assert caplog.messages == [text]
    assert located(found) == found  # what was found is not searched again


def test_the_variable_names_folders_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_MODELS", f"{tmp_path / 'none'}{os.pathsep}{tmp_path / 'x'}")
    file = write(tmp_path / "x" / "y" / "b.safetensors")
    assert path(located(config(tmp_path))) == str(file)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "b").mkdir()
    assert folders_of_user({"OMNI_MODELS": f"~/x::{tmp_path / 'b'}"}) == [tmp_path / "x", tmp_path / "b"]
    assert folders_of_user({}) == []


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "pretrained" / "net" / "a.safetensors")
    with pytest.raises(InputError, match=f"searched in {tmp_path / 'modles'}, and there is no such folder"):
        located(config(tmp_path, search=(str(tmp_path / "modles"),)))
    monkeypatch.setenv("OMNI_MODELS", str(tmp_path / "none"))
    for _ in range(2):
        located(config(tmp_path))
    assert caplog.messages == [f"OMNI_MODELS names {tmp_path / 'none'}, and there is no such folder"]


def test_what_belongs_beside_a_model_may_lie_elsewhere(tmp_path: Path) -> None:
    entry = {**ENTRY, "beside": ["google/tok"]}
    asked = config(tmp_path, entry, search=(str(tmp_path / "x"),))
    file = write(tmp_path / "x" / "text_encoders" / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"net/google/tok"):
        located(asked)
    (tmp_path / "x" / "Wan" / "google" / "tok").mkdir(parents=True)
    found = located(asked)
    assert found.model_files() == [str(file)]
    assert found.folders_beside == [tmp_path / "x" / "Wan"]
    registry = Registry([tmp_path / "tiny.toml"])
    bundle = Bundle.open(found.model_files(), registry, folders=found.folders_beside)
    assert bundle.beside("dit", "google/tok") == tmp_path / "x" / "Wan" / "google" / "tok"
    assert bundle.beside("dit", "nowhere") == file.parent / "nowhere"


def test_a_configuration_of_the_model_itself_must_lie_beside_it(tmp_path: Path) -> None:
    entry = {"path": "Omni/pytorch_model.pt", "beside": ["config.json"], "serves": {"rows": ["OmniAvatar"]}}
    asked = config(tmp_path, entry, search=(str(tmp_path / "x"),))
    write_delta(tmp_path / "x" / "bare")
    (tmp_path / "x" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        located(asked)
    file = write_delta(tmp_path / "x" / "whole", {})
    assert path(located(asked)) == str(file)


def test_what_is_not_named_like_it_is_told_and_not_taken(tmp_path: Path) -> None:
    entry = {**ENTRY, "serves": {"rows": ["tiny"], "named": ["*2.1*"]}}
    file = write(tmp_path / "x" / "wan2.2.safetensors")
    with pytest.raises(CheckpointError) as error:
        located(config(tmp_path, entry, search=(str(tmp_path / "x"),)))
    first, *lines = str(error.value).splitlines()
    assert first == f"1 model files are missing; looked in {tmp_path / 'pretrained'}, {tmp_path / 'x'} for"
    assert lines[1] == (
        f"{file} has the layout of net/a.safetensors, but is not named like it; if it is that model, "
        f"link to it from {tmp_path / 'pretrained' / 'net' / 'a.safetensors'}"
    )


def test_nothing_is_searched_for_an_entry_that_says_nothing(tmp_path: Path) -> None:
    write_base(tmp_path / "x")
    with pytest.raises(CheckpointError, match="no model at"):
        located(config(tmp_path, "net/a.safetensors", search=(str(tmp_path / "x"),)))


# --- files that are given in the place of others


def instead(file: Path, **fields: Any) -> dict[str, Any]:
    return {"path": str(file), "instead": True, **fields}


def test_a_file_that_is_replaced_need_not_be_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine = write_base(tmp_path / "mine")
    found = located(config(tmp_path, ENTRY, instead(mine)))
    assert found.model_files() == [str(mine)]
    assert f"{mine} takes the place of net/a.safetensors as 'dit', which is not there" in caplog.text
    with pytest.raises(CheckpointError, match=r"net/a\.safetensors"):  # it is for another transformer
        located(config(tmp_path, ENTRY, instead(mine, role="dit2")))
    caplog.clear()
    second = {"path": "net/b.safetensors", "role": "dit2", "serves": {"rows": ["tiny"]}}
    write(tmp_path / "pretrained" / "net" / "a.safetensors")
    assert len(located(config(tmp_path, ENTRY, second, instead(mine, role="dit2"))).models) == 2
    assert "is used as" not in caplog.text  # nothing is searched for what is replaced
    assert Bundle.open([mine], tiny(tmp_path)).roles == {"dit"}


def tiny(tmp_path: Path) -> Registry:
    return Registry([tmp_path / "tiny.toml"])


def test_what_is_replaced_without_a_word_is_what_all_others_lack(tmp_path: Path) -> None:
    mine = write_base(tmp_path / "mine")
    delta = {"path": str(write_delta(tmp_path / "delta"))}
    assert len(located(config(tmp_path, "net/a.safetensors", delta, instead(mine))).models) == 2
    there = {"path": str(write(tmp_path / "there.safetensors"))}
    for others in (
        ["net/a.safetensors", there],  # the transformer is there, so that this is something else
        ["net/a.safetensors", "net/b.safetensors"],  # one of these is something else
        [{"path": "net/a.safetensors", "strength": 1.0}],  # a LoRA
        [{"path": "net/a.pt", "serves": {"rows": ["OmniAvatar"]}}],  # a LoRA with audio layers
    ):
        with pytest.raises(CheckpointError, match=r"net/a\."):
            located(config(tmp_path, *others, instead(mine)))


def test_what_is_given_may_lack_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the text encoder in whose place it is given does, unless it has its own."""
    monkeypatch.setattr("omniavatar.locating.registry_of", lambda config: Registry.builtin())
    entry = {"path": "Wan/t5.pth", "beside": ["google/umt5-xxl"], "serves": {"rows": ["Wan*text-encoder"]}}
    folder = tmp_path / "pretrained" / "Wan"
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    for name, beside in (("umt5-xxl-enc-fp8_e4m3fn", [str(folder)]), ("umt5_xxl_fp8_e4m3fn_scaled", [])):
        (found,) = located(config(tmp_path, entry, instead(PUBLIC / "names" / f"{name}.safetensors"))).models
        assert list(found.folders) == beside


@pytest.mark.parametrize("kind", ["", "train"])
@pytest.mark.parametrize("size", ["1.3b", "14b"])
def test_packaged_configurations_name_rows_that_exist(kind: str, size: str) -> None:
    name = f"omniavatar-{size}{'-lora' if kind else ''}"
    content = read_config(packaged_configs(kind)[name], kind)
    entries = RunConfig(models=content["models"], models_dir="x").models
    assert len(entries) == 5
    registry = Registry(registry_tables())
    for entry in entries:
        assert entry.serves is not None
        assert entry.repo is not None
        assert any(entry.serves.wants(row) for row in registry.rows), entry.serves


GOOD = {
    "14b": [
        "wan2.1_t2v_14B_fp8_scaled.safetensors",
        "Wan2_1-T2V-14B_fp8_e4m3fn_scaled_KJ.safetensors",
        "wan2.1_text2video_14B_quanto_mbf16_int8.safetensors",
        "wan2.1-t2v-14b-Q8_0.gguf",
        "models--Wan-AI--Wan2.1-T2V-14B/snapshots/c/diffusion_pytorch_model-00001-of-00006.safetensors",
    ],
    "1.3b": ["wan2.1_t2v_1.3B_fp16.safetensors", "Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors"],
}
BAD = [
    "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
    "Wan21_T2V_14B_lightx2v_cfg_step_distill.safetensors",
    "krea-realtime-video-14b.safetensors",
    "models--lightx2v--Wan2.1-T2V-14B-StepDistill-CfgDistill/snapshots/c/model.safetensors",
]


@pytest.mark.parametrize("size", ["1.3b", "14b"])
def test_names_tell_transformers_of_one_layout_apart(size: str) -> None:
    content = read_config(packaged_configs()[f"omniavatar-{size}"])
    need = RunConfig(models=content["models"], models_dir="x").models[0].serves
    assert need is not None
    assert [name for name in GOOD[size] if not need.is_named(f"models/{name}")] == []
    assert [name for name in BAD if need.is_named(f"models/{name}")] == []


def test_places_can_share_a_library(tmp_path: Path) -> None:
    file = write_base(tmp_path / "x")
    asked = config(tmp_path, search=(str(tmp_path / "x"),))
    first = Places(asked)
    assert first.finds()[0].source == str(file)
    assert Places(asked, library=first.library).library is first.library


PUBLIC = Path(__file__).parent / "formats" / "public"


@pytest.mark.parametrize("case", ["tree_comfyui", "tree_hf_cache"])
def test_the_public_trees(case: str, tmp_path: Path) -> None:
    """What each tree's own files are is found below its root, wherever it lies."""
    from omniavatar.checkpoints.library import Library
    from omniavatar.plugins import discover

    (tree,) = [
        one["args"]["tree"] for one in json.loads((PUBLIC / "cases.json").read_text())["cases"] if one["name"] == case
    ]
    for link in tree["links"]:
        path = tmp_path / tree["root"] / link["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if "copy_of" in link:
            shutil.copy(PUBLIC / link["copy_of"], path)
        elif "link_to" in link:
            path.symlink_to(link["link_to"])
        else:
            path.write_text(link["text"])
    found = list(Library([tmp_path / tree["root"]], discover().registry()).models())
    roles = {role for model in found for role in model.row.components}
    assert "dit" in roles
    if case == "tree_comfyui":
        assert {"vae", "text_encoder", "lora"} <= roles
        (encoder,) = [model for model in found if "text_encoder" in model.row.components]
        assert encoder.has("inside:tokenizer")
        assert not encoder.has("../tokenizer")


def test_an_encoder_with_its_tokenizer_inside_needs_none_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omniavatar.plugins import discover

    monkeypatch.setattr("omniavatar.locating.registry_of", lambda config: discover().registry())
    name = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
    folder = tmp_path / "models" / "text_encoders"
    folder.mkdir(parents=True)
    shutil.copy(PUBLIC / "names" / name, folder / name)
    entry = {
        "path": "Wan/t5.pth",
        "beside": ["google/umt5-xxl"],
        "serves": {"rows": ["Wan*text-encoder"], "instead": {"google/umt5-xxl": ["../tokenizer", "inside:tokenizer"]}},
    }
    found = located(config(tmp_path, entry, search=(str(tmp_path / "models"),)))
    assert found.model_files() == [str(folder / name)]
    del entry["serves"]["instead"]  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="umt5-xxl"):
        located(config(tmp_path, entry, search=(str(tmp_path / "models"),)))
    (tmp_path / "models" / "tokenizer").mkdir()
    entry["serves"]["instead"] = {"google/umt5-xxl": ["../tokenizer"]}  # type: ignore[index]
    assert path(located(config(tmp_path, entry, search=(str(tmp_path / "models"),)))) == str(folder / name)
