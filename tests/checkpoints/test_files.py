from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from omniavatar.checkpoints.files import Source, check_index, check_shards, find_checkpoints
from omniavatar.errors import CheckpointError
from tests.checkpoints.tiny import write_safetensors

SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in [*SHARDS, "vae.pth", "readme.md", "config.json"]:
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(source: Source) -> list[list[str]]:
    return [[file.name for file in group] for group in find_checkpoints(source)]


def test_one_file(folder: Path) -> None:
    assert names(folder / "vae.pth") == [["vae.pth"]]


def test_a_folder_is_grouped_by_shard_names(folder: Path) -> None:
    assert names(folder) == [SHARDS, ["vae.pth"]]


def test_a_pattern(folder: Path) -> None:
    assert names(str(folder / "model-*.safetensors")) == [SHARDS]
    assert names(f"{folder}/*.*") == [SHARDS, ["vae.pth"]]


def test_a_list_is_one_checkpoint(folder: Path) -> None:
    assert names([folder / "vae.pth", folder / SHARDS[0], folder / "vae.pth"]) == [["vae.pth", SHARDS[0]]]


def test_an_index(folder: Path) -> None:
    index = folder / "other.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": SHARDS[1], "b": SHARDS[0], "c": SHARDS[0]}}))
    assert names(index) == [SHARDS[:2]]
    assert SHARDS[:2] in names(folder)


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": "../secret.safetensors"}, r"lists '\.\./secret\.safetensors', which is no plain file name"),
        ({"a": "/etc/secret.safetensors"}, "no plain file name"),
        ({"a": "..\\secret.safetensors"}, "no plain file name"),
        ({"a": 5}, "the name of a shard is no text, but 5"),
        ({"a": "x.safetensors.index.json"}, "no model file by its name"),
        ({}, "has no weight_map"),
        ({"a": "model-00009-of-00009.safetensors"}, "lacks"),
        ([], "has no weight_map"),
    ],
)
def test_hostile_indices(folder: Path, weight_map: object, reason: str) -> None:
    index = folder / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=reason):
        find_checkpoints(index)


def test_missing_shards_are_named(folder: Path) -> None:
    check_shards(tuple(folder / name for name in SHARDS))
    with pytest.raises(CheckpointError, match=r"2 of 3 shards are missing, first model-00001-of-00003"):
        check_shards((folder / SHARDS[1],))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model file at"):
        find_checkpoints(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="holds no model files"):
        find_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="empty list"):
        find_checkpoints([])


def test_what_is_no_index(folder: Path) -> None:
    index = folder / "x.safetensors.index.json"
    for text in ("{", "[" * 100_000, "\xff"):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"x\.safetensors\.index\.json is not JSON") as caught:
            find_checkpoints(index)
        assert "\n" not in str(caught.value)


def test_an_index_that_leaves_out_a_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": SHARDS[0]}}))
    with pytest.raises(CheckpointError, match=f"leaves out {SHARDS[1]}"):
        find_checkpoints(folder)


def test_shards_that_lack_what_the_index_says(tmp_path: Path) -> None:
    for name, tensor in (("one", "a"), ("two", "b")):
        write_safetensors(tmp_path / f"{name}.safetensors", {tensor: torch.zeros(1)})
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    check_index(*find_checkpoints(index))
    index.write_text(json.dumps({"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"places 'a' in two\.safetensors, which lacks it"):
        check_index(*find_checkpoints(index))


def test_a_model_in_two_formats_is_read_once(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"):
        (tmp_path / name).touch()
    assert names(tmp_path) == [["model.safetensors"]]
    (tmp_path / "model.safetensors").unlink()
    assert names(tmp_path) == [["model.fp16.safetensors"], ["pytorch_model.bin"]]


def test_links_are_followed_and_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0").touch()
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "a.safetensors").symlink_to("../blobs/0")
    assert names(folder) == [["a.safetensors"]]
    (folder / "b.safetensors").symlink_to("../blobs/1")
    with pytest.raises(CheckpointError, match=r"b\.safetensors is a link to \.\./blobs/1, which is not there"):
        find_checkpoints(folder)


def repository(folder: Path, *commits: str) -> Path:
    """A repository in the Hugging Face cache, with a file in each of its snapshots."""
    for commit in commits:
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / f"{commit}.safetensors").touch()
    return folder


def test_a_repository_of_the_hugging_face_cache(tmp_path: Path) -> None:
    folder = repository(tmp_path / "models--a--b", "one")
    assert names(folder) == [["one.safetensors"]]
    repository(folder, "two")
    with pytest.raises(CheckpointError, match="has 2 snapshots and none for its branch main"):
        find_checkpoints(folder)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("two\n")
    assert names(folder) == [["two.safetensors"]]
    (folder / "refs" / "main").write_text("../..")
    with pytest.raises(CheckpointError, match="has 2 snapshots"):
        find_checkpoints(folder)


def test_folders_of_several_models(tmp_path: Path) -> None:
    for name in ("transformer", "transformer_2", "vae", "scheduler"):
        (tmp_path / name).mkdir()
    for name in ("transformer/a", "transformer_2/b", "vae/c", "d"):
        (tmp_path / f"{name}.safetensors").touch()
    assert names(tmp_path) == [["d.safetensors"]]
    (tmp_path / "model_index.json").write_text("{}")
    assert names(tmp_path) == [["a.safetensors"], ["b.safetensors"], ["c.safetensors"]]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are Unix")
def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    pipe, device, circle = (tmp_path / f"{name}.safetensors" for name in ("pipe", "device", "circle"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    circle.symlink_to(circle.name)
    for path in (pipe, device, circle):
        with pytest.raises(CheckpointError, match=f"{path.name} is no file that can be read"):
            names(path)
    index = tmp_path / "x" / "m.safetensors.index.json"
    index.parent.mkdir()
    os.mkfifo(index)
    with pytest.raises(CheckpointError, match="is no file"):
        names(index.parent)
    readme = tmp_path / "readme.txt"
    readme.write_text("x")
    with pytest.raises(CheckpointError, match="is no model file by its name"):
        names(tmp_path / "readme*")


def test_names_in_an_index_are_shown_without_control_characters(folder: Path) -> None:
    index = folder / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "\x1b[31m.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lists '\\x1b\[31m\.safetensors', which"):
        names(index)
