from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from omniavatar.checkpoints import fingerprint, read_header
from omniavatar.checkpoints.formats.pickled import unpickle
from omniavatar.checkpoints.headers import MAX_HEADER_BYTES
from omniavatar.errors import CheckpointError
from tests.checkpoints.tiny import write_safetensors

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3, dtype=torch.bfloat16), "s": torch.tensor(2)}
SHAPES = {"a.weight": (2, 3), "b": (3,), "s": ()}


def raw(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with a header of our choice."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "module", "model_state"])
def test_pickled(tmp_path: Path, zipped: bool, wrapper: str | None) -> None:
    path = tmp_path / "model.pth"
    torch.save({wrapper: STATE} if wrapper else STATE, path, _use_new_zipfile_serialization=zipped)
    header = read_header([path])
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == SHAPES
    assert header.tensors["b"].dtype == "bfloat16"
    assert header.hash == fingerprint(SHAPES)
    assert torch.equal(unpickle(path, data=True)["a.weight"], STATE["a.weight"])


def test_safetensors(tmp_path: Path) -> None:
    header = read_header([write_safetensors(tmp_path / "model.safetensors", STATE)])
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in header.tensors.items()} == {
        "a.weight": ((2, 3), "float32"),
        "b": ((3,), "bfloat16"),
        "s": ((), "int64"),
    }
    assert header.num_params == 10


def test_more_than_one_top_level_entry_is_not_unwrapped(tmp_path: Path) -> None:
    torch.save({"model_state": {"w": torch.zeros(2)}, "epoch": 3}, tmp_path / "model.pth")
    header = read_header([tmp_path / "model.pth"])
    assert header.hash == fingerprint({"model_state": {"w": (2,)}})
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == {"model_state.w": (2,)}


def test_shards_are_one_checkpoint_and_may_not_overlap(tmp_path: Path) -> None:
    first = write_safetensors(tmp_path / "1.safetensors", {"a": torch.zeros(2)})
    second = write_safetensors(tmp_path / "2.safetensors", {"b": torch.zeros(3)})
    assert read_header([first, second]).hash == fingerprint({"a": (2,), "b": (3,)})
    with pytest.raises(CheckpointError, match=r"'a' is also in another"):
        read_header([first, write_safetensors(tmp_path / "3.safetensors", {"a": torch.zeros(2)})])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"abc", "the file has 3"),
        (b"<!doctype html><html>not found</html>", "is a web page, not a model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (raw(b"{}", length=2**63), "its header should have"),
        (raw(b"{'a'"), "not valid JSON"),
        (raw(b"\xff\xfe{}"), "not valid JSON"),
        (raw(b"[" * 100_000), "not valid JSON"),
        (raw(b'{"x": 9' + b"9" * 5000 + b"}"), "not valid JSON"),
        (raw(b"[]"), "not a JSON object"),
        (raw(b'{"x": 1, "x": 2}'), "not valid JSON"),
        (raw({"x": 5}), "unknown dtype"),
        (raw(entry(dtype="F99"), b"0000"), "unknown dtype"),
        (raw(entry(dtype=["F32"]), b"0000"), "unknown dtype"),
        (raw(entry(shape=[-1]), b"0000"), "no valid shape"),
        (raw(entry(shape=[True]), b"0000"), "no valid shape"),
        (raw(entry(shape=[1.0]), b"0000"), "no valid shape"),
        (raw(entry(offsets=[0]), b"0000"), "no valid shape"),
        (raw(entry(offsets=[4, 0]), b"0000"), "spans -4 bytes"),
        (raw(entry(shape=[2**60, 2**60]), b"0000"), "spans 4 bytes"),
        (raw(entry(), b"00"), "describes 4 bytes of data, the file holds 2"),
        (raw(entry(), b"0000" * 2), "describes 4 bytes of data, the file holds 8"),
        (raw(entry(offsets=[2**40, 2**40 + 4]), b"0000"), "the file holds 4"),
        (raw({"x": entry()["x"], "y": entry()["x"]}, b"0000"), "overlap or leave a gap at byte 0"),
        (raw(entry(offsets=[4, 8]), b"0000" * 2), "overlap or leave a gap at byte 0"),
    ],
)
def test_hostile_safetensors(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_header([path])
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_header_length_has_a_cap(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    os.truncate(path, 2 * MAX_HEADER_BYTES)  # sparse
    with pytest.raises(CheckpointError, match="more than the"):
        read_header([path])


class Evil:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickles_run_no_code(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": Evil(tmp_path / "evil")}, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read_header([tmp_path / "model.pth"])
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_truncated_pickles(tmp_path: Path, zipped: bool, kept: float) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.randn(100, 100)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        read_header([path])
    assert "\n" not in str(caught.value)


def test_entries_without_a_text_for_a_name(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(2), "a": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"has an entry named 0, .*save its plain state dict"):
        read_header([tmp_path / "model.pt"])


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2)])
def test_pickles_without_names(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="not a state dict"):
        read_header([tmp_path / "model.pt"])


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        read_header([tmp_path / "absent.safetensors"])
    (tmp_path / "model.onnx").write_bytes(b"ONNX")
    with pytest.raises(CheckpointError, match="known endings"):
        read_header([tmp_path / "model.onnx"])


def circle() -> dict[str, Any]:
    """A dictionary that holds itself."""
    content: dict[str, Any] = {"w": torch.zeros(1)}
    content["self"] = content
    return content


def doubled(times: int) -> dict[str, Any]:
    """Two to this power of dictionaries, in few bytes."""
    content: dict[str, Any] = {"w": torch.zeros(1)}
    for _ in range(times):
        content = {"left": content, "right": content}
    return content


def nested(depth: int) -> dict[str, Any]:
    content: dict[str, Any] = {"w": torch.zeros(1)}
    for _ in range(depth):
        content = {"in": content}
    return content


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (circle(), "holds dictionaries more than 50 deep"),
        (doubled(26), "holds dictionaries with more than 100000 entries"),
        (nested(200), "holds dictionaries more than 50 deep"),
    ],
    ids=["circle", "doubled", "nested"],
)
def test_dictionaries_without_end(tmp_path: Path, content: dict[str, Any], message: str, zipped: bool) -> None:
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=message):
        read_header([tmp_path / "model.pt"])


@pytest.mark.slow
def test_headers_of_too_many_tensors(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    (tmp_path / "a.safetensors").write_bytes(raw({str(number): empty for number in range(100_001)}))
    with pytest.raises(CheckpointError, match="its header names 100001 tensors, more than the 100000 allowed"):
        read_header([tmp_path / "a.safetensors"])


def test_names_that_unpack_to_gigabytes_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniavatar.checkpoints.formats.pickled.MAX_HEADER_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps("x" * 100_000))
    with pytest.raises(CheckpointError, match="is damaged or holds more than tensors"):
        read_header([tmp_path / "model.pt"])


def test_names_and_shapes_of_any_length_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw({"blocks." * 10_000: entry()["x"]}, bytes(4)))
    with pytest.raises(CheckpointError, match=r"a name of 70000 letters \('blocks\.") as caught:
        read_header([path])
    assert len(str(caught.value)) < 400
    path.write_bytes(raw(entry(shape=[1] * 1000), bytes(4)))
    with pytest.raises(CheckpointError, match="no valid shape"):
        read_header([path])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled_tensors_are_not_larger_than_their_file(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "m.pth"
    torch.save({"a": torch.zeros(1).expand(2**20, 2**14)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="would make 68719476736 bytes of tensors, the file has") as caught:
        read_header([path])
    assert "\n" not in str(caught.value)
    table = torch.zeros(1000)
    torch.save({"a": table, "b": table}, path, _use_new_zipfile_serialization=zipped)  # a table that is shared
    assert set(read_header([path]).tensors) == {"a", "b"}
