"""The header of a GGUF file, read and checked: nothing that it says is trusted before it fits the file.

Layout (github.com/ggml-org/ggml, docs/gguf.md), all little-endian: "GGUF", version, counts of tensors and of keys; the
keys with their values; a record for each tensor; padding; the data. Memory is taken for what is there, never for what
a number announces.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from omniavatar.sdk import MAX_HEADER_BYTES, MAX_TENSORS, CheckpointError, check_readable, shortened, shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 8
"""More than any published tensor has: ggml allows 4, Wan's patch embedding has 5."""
MAX_STRINGS = 2_000_000
"""Of all arrays together; the largest vocabularies have 260,000."""
ALIGNMENT = "general.alignment"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."

STRING, ARRAY = 8, 9
NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""The number types of values."""
INTEGERS = tuple(GGMLQuantizationType[name] for name in ("I8", "I16", "I32", "I64"))
LEAST_KEY, LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8
"""Bytes that the smallest entries take."""


@dataclass(frozen=True)
class Record:
    """A tensor of a file: `rows` is its shape as stored in torch's order, `start` its place in the file."""

    name: str
    rows: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.rows)


@dataclass(frozen=True)
class Contents:
    """What a header says. Arrays of numbers are numpy arrays, arrays of strings lists."""

    version: int
    values: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, Record] = field(repr=False)


def read_contents(file: Path) -> Contents:
    """Read and check a header. Raises CheckpointError, in one line, for all that is not sound."""
    check_readable(file)
    size = file.stat().st_size
    with file.open("rb", buffering=1 << 20) as stream:
        reader = Reader(file, stream, size)
        version = read_version(reader)
        tensor_count, key_count = reader.number("Q"), reader.number("Q")
        if tensor_count == 0:
            raise CheckpointError(f"{file} holds no tensors; download it again")
        reader.check_count(tensor_count, LEAST_TENSOR, MAX_TENSORS, "tensors")
        reader.check_count(key_count, LEAST_KEY, 2 * MAX_TENSORS, "keys")
        values = read_values(reader, key_count)
        alignment = checked_alignment(reader, values)
        tensors = [read_record(reader) for _ in range(tensor_count)]
        data = -(-reader.position // alignment) * alignment
    return Contents(version, values, placed(reader, tensors, data, alignment))


class Reader:
    """Reads a header from its beginning; what would go beyond the file is refused before it is read."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.position = 0
        self.strings = 0
        self._stream = stream

    @property
    def left(self) -> int:
        return self.size - self.position

    def damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.file} is damaged: {reason}; download it again")

    def check(self, count: int, what: str) -> None:
        """Refuse to read so many bytes if they are not there; `what` names them."""
        if count > self.size:
            raise self.damaged(f"{what} of {count} bytes would be longer than the file, which has {self.size}")
        if count > self.left:
            raise self.damaged(f"its header is cut off at byte {self.size}, within {what}")
        if self.position + count > MAX_HEADER_BYTES:
            raise self.damaged(f"its header would have more than the {MAX_HEADER_BYTES} bytes allowed")

    def take(self, count: int, what: str) -> bytes:
        """The next bytes."""
        self.check(count, what)
        content = self._stream.read(count)
        if len(content) != count:
            raise self.damaged(f"its header is cut off at byte {self.position + len(content)}, within {what}")
        self.position += count
        return content

    def number(self, code: str, what: str = "a number") -> int:
        form = f"<{code}"
        value: int = struct.unpack(form, self.take(struct.calcsize(form), what))[0]
        return value

    def text(self, what: str) -> str:
        return self.decoded(self.take(self.number("Q", f"the length of {what}"), what), what)

    def texts(self, count: int, what: str) -> list[str]:
        """The strings of an array. A vocabulary has hundreds of thousands, so there are no calls for those in order."""
        texts: list[str] = []
        read, most = self._stream.read, min(self.size, MAX_HEADER_BYTES)
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            end = self.position + 8 + length
            if end > most:
                self.check(8, f"the length of {what}")
                self.position += 8
                self.check(length, what)
            self.position = end
            texts.append(self.decoded(read(length), what))
        return texts

    def decoded(self, content: bytes, what: str) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} at byte {self.position - len(content)} is not valid text") from error

    def check_count(self, count: int, least: int, most: int, what: str) -> None:
        """Refuse a count of entries that take more bytes than there are, or that no model has."""
        if count * least > self.left:
            raise self.damaged(f"its header announces {count} {what}, which do not fit the file of {self.size} bytes")
        if count > most:
            raise self.damaged(f"its header announces {count} {what}, more than the {most} allowed")


def read_version(reader: Reader) -> int:
    """The version after the magic."""
    file = reader.file
    if reader.take(min(4, reader.size), "the magic") != MAGIC:
        raise CheckpointError(
            f"{file} is not a GGUF file: it does not begin with 'GGUF'; download it again, or give it the right ending"
        )
    version = reader.number("I", "the version")
    if version in VERSIONS:
        return version
    if version & 0xFFFF == 0:  # 3 is 0x03000000 when the bytes are swapped
        raise CheckpointError(f"{file} is a big-endian GGUF file, and only little-endian ones are read; convert it")
    known = " and ".join(map(str, VERSIONS))
    raise CheckpointError(f"{file} is a GGUF file of version {version}, and only {known} are read; convert it")


def read_values(reader: Reader, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _ in range(count):
        key = reader.text("a key")
        if key in values:
            raise reader.damaged(f"the key {quoted(key)} occurs twice")
        values[key] = read_value(reader, key, reader.number("I", "the type of a value"))
    return values


def read_value(reader: Reader, key: str, kind: int) -> Any:
    """A value: a number, a string, or an array of these."""
    if kind == STRING:
        return reader.text(f"the string {quoted(key)}")
    if kind in NUMBERS:
        dtype = NUMBERS[kind]
        return np.frombuffer(reader.take(dtype.itemsize, f"the value {quoted(key)}"), dtype)[0].item()
    if kind != ARRAY:
        raise reader.damaged(f"the key {quoted(key)} has a value of the unknown type {kind}")
    inner, length = reader.number("I", "the type of an array"), reader.number("Q", "the length of an array")
    if inner == ARRAY:
        raise reader.damaged(f"the key {quoted(key)} has arrays nested too deep")
    if inner != STRING and inner not in NUMBERS:
        raise reader.damaged(f"the key {quoted(key)} has an array of the unknown type {inner}")
    if length * (8 if inner == STRING else NUMBERS[inner].itemsize) > reader.left:
        raise reader.damaged(f"the array {quoted(key)} of {length} values would be longer than the file")
    if inner == STRING:
        reader.strings += length
        if reader.strings > MAX_STRINGS:
            raise reader.damaged(f"its header has more than the {MAX_STRINGS} strings allowed")
        return reader.texts(length, f"a string of {quoted(key)}")
    return np.frombuffer(reader.take(length * NUMBERS[inner].itemsize, f"the array {quoted(key)}"), NUMBERS[inner])


def checked_alignment(reader: Reader, values: Mapping[str, Any]) -> int:
    alignment = values.get(ALIGNMENT, 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise reader.damaged(f"its alignment is {shown(alignment)}, which is no power of two")
    return alignment


def read_record(reader: Reader) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    """Name, shape in torch's order, type and offset of a tensor."""
    name = reader.text("the name of a tensor")
    count = reader.number("I", f"the dimensions of {quoted(name)}")
    if count > MAX_DIMENSIONS:
        raise reader.damaged(f"tensor {quoted(name)} has {count} dimensions, more than the {MAX_DIMENSIONS} allowed")
    rows = tuple(reader.number("Q", f"the shape of {quoted(name)}") for _ in range(count))[::-1]
    if 0 in rows:
        raise reader.damaged(f"tensor {quoted(name)} has no elements: its shape is {list(rows)}")
    number = reader.number("I", f"the type of {quoted(name)}")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError as error:
        raise CheckpointError(
            f"{reader.file}: tensor {quoted(name)} has the unknown type {number}; use a file of another quantisation"
        ) from error
    if kind in INTEGERS:
        raise CheckpointError(f"{reader.file}: tensor {quoted(name)} is of the type {kind.name}, which is no weight")
    return name, rows, kind, reader.number("Q", f"the offset of {quoted(name)}")


def placed(
    reader: Reader, tensors: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]], data: int, alignment: int
) -> dict[str, Record]:
    """The tensors with their places in the file, which must lie inside of it, apart from each other."""
    records: dict[str, Record] = {}
    for name, rows, kind, offset in tensors:
        if name in records:
            raise reader.damaged(f"the tensor {quoted(name)} occurs twice")
        if offset % alignment:
            raise reader.damaged(f"the offset {offset} of {quoted(name)} is no multiple of the alignment {alignment}")
        numbers, nbytes = GGML_QUANT_SIZES[kind]
        last = rows[-1] if rows else 1
        if last % numbers:
            raise reader.damaged(f"the {kind.name} tensor {quoted(name)} has rows of {last}, no multiple of {numbers}")
        records[name] = Record(name, rows, kind, data + offset, math.prod(rows) // numbers * nbytes)
    check_places(reader, records, data)
    return records


def check_places(reader: Reader, records: Mapping[str, Record], data: int) -> None:
    """Refuse tensors that overlap, or that end behind the end of the file."""
    there = max(0, reader.size - data)
    ordered = sorted(records.values(), key=lambda record: (record.start, record.nbytes))
    for before, record in pairwise(ordered):
        if before.start + before.nbytes > record.start and record.start < reader.size:
            raise reader.damaged(f"the tensors {quoted(before.name)} and {quoted(record.name)} overlap")
    last = max(ordered, key=lambda record: record.start + record.nbytes)
    if last.start >= reader.size and there:
        raise reader.damaged(
            f"tensor {quoted(last.name)} lies outside the file: it begins at byte {last.start} of {reader.size}"
        )
    needed = last.start + last.nbytes - data
    if needed > there:
        raise reader.damaged(
            f"its tensors need {needed} bytes of data and there are {there}: tensor {quoted(last.name)} is cut off"
        )


def quoted(name: str) -> str:
    """A name from a stranger's file as it may stand in a line."""
    return repr(shortened(name))
