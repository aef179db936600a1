"""The names, shapes and dtypes in the files of one checkpoint, read without its data.

`read_header([shard, shard, ...])` gives the union over all shards; `formats` reads each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omniavatar.checkpoints.formats import (
    BUILTIN,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    FileHeader,
    Format,
    Formats,
    TensorInfo,
    check_readable,
)
from omniavatar.checkpoints.hashing import Entries, fingerprint
from omniavatar.errors import CheckpointError, parsing, shortened

__all__ = [
    "BUILTIN_FORMATS",
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "SUFFIXES",
    "Header",
    "TensorInfo",
    "check_readable",
    "read_file_header",
    "read_header",
]

WHOLE = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
"""Types of whole numbers."""
LONGEST_NAME = 500
"""Letters of a tensor's name; patterns are matched with all names, which takes time with the square of this."""
BUILTIN_FORMATS = Formats(BUILTIN)
SUFFIXES = BUILTIN_FORMATS.suffixes


@dataclass(frozen=True)
class Header:
    """What the header of a checkpoint says.

    entries: what the hash is made from; also the nested dictionaries of pickled files. extras: what lies in the files
    and is no weight, such as the "tokenizer" of a text encoder. prefix: what stood before these names in the files.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    entries: Entries = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    extras: Mapping[str, Any] = field(default_factory=dict, repr=False)
    prefix: str = ""

    @cached_property
    def hash(self) -> str:
        return fingerprint(self.entries)

    @property
    def num_params(self) -> int:
        return sum(tensor.numel for tensor in self.tensors.values())


def read_header(files: Sequence[Path], formats: Formats = BUILTIN_FORMATS) -> Header:
    """The names and shapes of a checkpoint, all shards together; a name that two shards share is an error."""
    tensors: dict[str, TensorInfo] = {}
    entries: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    of = {file: formats.of(file) for file in files}
    for file, known in of.items():
        found = read_file_header(file, known.together([other for other in files if of[other] is known]))
        for name in found.entries:
            if name in entries:
                raise CheckpointError(
                    f"{file}: tensor '{name}' is also in another of the {len(files)} files given together"
                )
        tensors |= found.tensors
        entries |= found.entries
        metadata |= found.metadata
    return Header(tuple(files), tensors, entries, metadata)


def read_file_header(file: Path, known: Format) -> FileHeader:
    """What one file holds; each of its tensors knows the format that reads it."""
    with parsing(lambda reason: CheckpointError(f"{file} cannot be examined ({reason}); download it again")):
        header = known.read_header(file)
    long = next((name for name in header.tensors if len(name) > LONGEST_NAME), None)
    if long is not None:
        raise CheckpointError(
            f"{file} has a tensor with a name of {len(long)} letters ('{shortened(long)}'), as no model does; "
            "download it again"
        )
    tensors = {name: replace(tensor, format=known) for name, tensor in header.tensors.items()}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and len(tensor.shape) > 1 and tensor.packing is None:
            check_numbers(tensor, name)
    return replace(header, tensors=tensors)


def check_numbers(tensor: TensorInfo, name: str) -> None:
    """Raise CheckpointError for whole numbers where a network computes with others, by its name there."""
    if tensor.dtype in WHOLE:
        raise CheckpointError(
            f"{tensor.file}: {name} has the whole numbers of {tensor.dtype}, as a quantised file without its scales; "
            "take another file of this model"
        )
