"""What is wrong with a file is said in one line, in bounded time and memory, whatever its header announces."""

from __future__ import annotations

import json
import random
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omniavatar_gguf.format import GgufFormat
from omniavatar_gguf.header import read_contents

import tests.formats
from omniavatar.errors import CheckpointError

PUBLIC = Path(tests.formats.__file__).parent / "public"
WEIGHT = "blocks.0.self_attn.q.weight"
SENTENCES = {
    "gguf_bad_magic": ["is not a GGUF file"],
    "gguf_version_1": ["version 1", "2 and 3"],
    "gguf_version_99": ["version 99"],
    "gguf_big_endian": ["big-endian"],
    "gguf_empty": ["is empty"],
    "gguf_only_magic": ["header is cut off"],
    "gguf_header_cut": ["header is cut off"],
    "gguf_data_cut": ["need 2304 bytes", "there are 1152", WEIGHT],
    "gguf_no_tensors": ["holds no tensors"],
    "gguf_huge_tensor_count": ["1152921504606846976 tensors", "do not fit the file"],
    "gguf_huge_kv_count": ["damaged", "1152921504606846976 keys"],
    "gguf_huge_string": ["string 'general.architecture'", "longer than the file"],
    "gguf_huge_key": ["a key", "longer than the file"],
    "gguf_huge_array": ["array 'tokenizer.ggml.tokens'", "longer than the file"],
    "gguf_nested_arrays": ["damaged", "nested too deep"],
    "gguf_unknown_kv_type": ["key 'x'", "unknown type 77"],
    "gguf_unknown_tensor_type": [WEIGHT, "unknown type 200"],
    "gguf_integer_tensor": [WEIGHT, "I32", "no weight"],
    "gguf_unknown_architecture": ["'flux'", "no Wan model"],
    "gguf_text_architecture": ["'llama'"],
    "gguf_no_architecture_no_match": ["names no architecture", "its tensors fit none"],
    "gguf_architecture_not_string": ["general.architecture", "not a string"],
    "gguf_shape_too_large": [WEIGHT, "need 147456 bytes", "there are 2304"],
    "gguf_shape_overflow": [WEIGHT, "need 295147905179352825856 bytes"],
    "gguf_zero_dimension": [WEIGHT, "no elements"],
    "gguf_200_dimensions": [WEIGHT, "200 dimensions"],
    "gguf_row_not_multiple": [WEIGHT, "Q8_0", "33", "32"],
    "gguf_offset_outside": [WEIGHT, "outside the file"],
    "gguf_offset_unaligned": [WEIGHT, "no multiple of the alignment"],
    "gguf_overlap": [WEIGHT, "blocks.0.self_attn.k.weight", "overlap"],
    "gguf_same_name_twice": [WEIGHT, "occurs twice"],
    "gguf_same_key_twice": ["key 'general.architecture'", "occurs twice"],
    "gguf_alignment_zero": ["alignment is 0"],
    "gguf_alignment_three": ["alignment is 3", "no power of two"],
    "gguf_orig_shape_wrong": [WEIGHT, "[25, 24]", "576 elements"],
    "gguf_orig_shape_negative": [WEIGHT, "[-24, -24]"],
    "gguf_bad_utf8": ["name", "not valid text"],
    "safetensors_named_gguf": ["is not a GGUF file"],
    "lfs_pointer": ["Git LFS pointer"],
}


def cases(kind: str) -> dict[str, Path]:
    """The file of every case of a kind whose name ends in .gguf."""
    content = json.loads((PUBLIC / "cases.json").read_text(encoding="utf-8"))["cases"]
    return {
        case["name"]: PUBLIC / case["files"][0]
        for case in content
        if case["kind"] == kind and case["files"] and case["files"][0].endswith(".gguf")
    }


BROKEN = cases("broken")


@pytest.fixture
def _bounded() -> Iterator[None]:
    """Fails if what happens takes long, or memory that does not stand in the file."""
    tracemalloc.start()
    start = time.perf_counter()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    assert time.perf_counter() - start < 1


@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize("name", [name for name in BROKEN if name != "gguf_control"])
def test_a_broken_file_is_explained(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        GgufFormat().read_header(BROKEN[name])
    message = str(caught.value)
    assert [words for words in SENTENCES[name] if words not in message] == []
    assert str(BROKEN[name]) in message
    assert "\n" not in message


def test_the_control_is_sound() -> None:
    assert list(GgufFormat().read_header(BROKEN["gguf_control"]).tensors) == [WEIGHT]


# --- files made here


def text(content: str | bytes) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(content)) + content


def value(key: str, kind: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + content


def record(name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """The record of a tensor, its shape in torch's order."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def gguf_file(path: Path, values: list[bytes], records: list[bytes], data: bytes, version: int = 3) -> Path:
    header = b"GGUF" + struct.pack("<IQQ", version, len(records), len(values)) + b"".join(values) + b"".join(records)
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


WAN = value("general.architecture", 8, text("wan"))
EIGHT = np.arange(8, dtype=np.float32).tobytes()


def refused(file: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        GgufFormat().read_header(file)
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_version_2_and_values_of_all_types(tmp_path: Path) -> None:
    scalars = {0: ("B", 200), 1: ("b", -3), 2: ("H", 60000), 3: ("h", -9), 4: ("I", 7), 5: ("i", -7), 6: ("f", 0.5)}
    scalars |= {7: ("?", True), 10: ("Q", 2**63), 11: ("q", -(2**40)), 12: ("d", 0.1)}
    values = [value(f"x{kind}", kind, struct.pack(f"<{code}", number)) for kind, (code, number) in scalars.items()]
    words = value("words", 9, struct.pack("<IQ", 8, 2) + text("a") + text("▁b"))
    numbers = value("numbers", 9, struct.pack("<IQ3i", 5, 3, 1, -2, 3))
    file = gguf_file(tmp_path / "x.gguf", [WAN, *values, words, numbers], [record("a", (2, 4))], EIGHT, version=2)
    contents = read_contents(file)
    assert contents.version == 2
    assert {kind: contents.values[f"x{kind}"] for kind in scalars} == {kind: n for kind, (_, n) in scalars.items()}
    assert contents.values["words"] == ["a", "▁b"]
    assert contents.values["numbers"].tolist() == [1, -2, 3]
    assert contents.tensors["a"].rows == (2, 4)


def test_an_architecture_that_is_a_list(tmp_path: Path) -> None:
    wan = value("general.architecture", 9, struct.pack("<IQ2I", 4, 2, 1, 2))
    refused(gguf_file(tmp_path / "x.gguf", [wan], [record("a", (2, 4))], EIGHT), "not a string")


def test_an_alignment_that_is_no_number(tmp_path: Path) -> None:
    odd = value("general.alignment", 8, text("32"))
    refused(gguf_file(tmp_path / "x.gguf", [WAN, odd], [record("a", (2, 4))], EIGHT), "alignment")


@pytest.mark.parametrize(
    "shape",
    [(8, text("8")), (9, struct.pack("<IQ", 4, 0)), (9, struct.pack("<IQ9I", 4, 9, *[1] * 8, 8))],
    ids=["text", "empty", "too long"],
)
def test_an_orig_shape_that_is_none(tmp_path: Path, shape: tuple[int, bytes]) -> None:
    odd = value("comfy.gguf.orig_shape.a", *shape)
    refused(gguf_file(tmp_path / "x.gguf", [WAN, odd], [record("a", (2, 4))], EIGHT), "orig_shape of 'a'")


def test_split_files(tmp_path: Path) -> None:
    part = value("split.count", 2, struct.pack("<H", 3))
    refused(gguf_file(tmp_path / "x.gguf", [WAN, part], [record("a", (2, 4))], EIGHT), "one of 3 parts", "--merge")


def test_types_that_nobody_can_read(tmp_path: Path) -> None:
    refused(gguf_file(tmp_path / "x.gguf", [WAN], [record("a", (32,), kind=9)], bytes(40)), "'a'", "Q8_1")


def test_lines_in_names_stay_in_the_line(tmp_path: Path) -> None:
    refused(gguf_file(tmp_path / "x.gguf", [WAN], [record("a\nb\x1b[2J" * 99, (2, 4), 200)], EIGHT), "a\\nb\\x1b")


def test_data_that_lies_outside_without_any(tmp_path: Path) -> None:
    refused(gguf_file(tmp_path / "x.gguf", [WAN], [record("a", (2, 4))], b""), "need 32 bytes", "there are 0")


@pytest.mark.usefixtures("_bounded")
def test_more_strings_than_any_vocabulary_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniavatar_gguf.header.MAX_STRINGS", 10)
    many = value("words", 9, struct.pack("<IQ", 8, 11) + 11 * text("a"))
    refused(gguf_file(tmp_path / "x.gguf", [WAN, many], [record("a", (2, 4))], EIGHT), "more than the 10 strings")


@pytest.mark.usefixtures("_bounded")
def test_a_header_as_long_as_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    start = value("words", 9, struct.pack("<IQ", 0, 2**33))
    gguf_file(path, [WAN, start], [record("a", (2, 4))], EIGHT)
    with path.open("r+b") as stream:
        stream.truncate(2**34)  # a hole, which takes no space
    refused(path, "more than the 100000000 bytes allowed")


def test_damage_anywhere_is_an_error_of_ours(tmp_path: Path) -> None:
    """Random bytes of sound headers changed, and headers cut: read, or refused in one line."""
    dice, path = random.Random(0), tmp_path / "x.gguf"
    sources = [file.read_bytes() for file in (PUBLIC / "gguf" / "umt5_Q4_K.gguf", BROKEN["gguf_control"])]
    messages = []
    for _ in range(400):
        content = bytearray(dice.choice(sources))
        for _ in range(dice.randint(1, 4)):
            content[dice.randrange(min(4900, len(content)))] = dice.choice((0, 1, 8, 9, 127, 255))
        path.write_bytes(content[: dice.choice((len(content), dice.randrange(len(content))))])
        try:
            GgufFormat().read_header(path)
        except CheckpointError as error:
            messages.append(str(error))
    assert 20 < len(messages) < 380
    assert [message for message in messages if "\n" in message] == []
