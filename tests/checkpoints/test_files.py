from __future__ import annotations

import json
from pathlib import Path

import pytest

from omniavatar.checkpoints.files import Source, check_shards, find_checkpoints
from omniavatar.errors import CheckpointError

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
        ({"a": "../secret.safetensors"}, "not plain file names"),
        ({"a": 5}, "not plain file names"),
        ({}, "not plain file names"),
        ({"a": "model-00009-of-00009.safetensors"}, "lacks"),
        ([], "needs a 'weight_map'"),
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
