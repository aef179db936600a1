"""What every weight format gives: headers without data, then tensors, plain or packed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar.checkpoints.hashing import Entries
from omniavatar.models.packed_tensor import PackedTensor

__all__ = ["BITS", "MAX_HEADER_BYTES", "MAX_TENSORS", "FileHeader", "Format", "PackedTensor", "TensorInfo"]

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 100_000
"""More than any published model has."""
MAX_DIMENSIONS = 64
"""More than torch has."""

BITS = {
    "bool": 8,
    "uint8": 8,
    "int8": 8,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "float8_e8m0fnu": 8,
    "uint16": 16,
    "int16": 16,
    "float16": 16,
    "bfloat16": 16,
    "uint32": 32,
    "int32": 32,
    "float32": 32,
    "uint64": 64,
    "int64": 64,
    "float64": 64,
    "complex64": 64,
}
"""Bits of one element, by torch's name of the dtype."""


@dataclass(frozen=True)
class TensorInfo:
    """One weight of a file, without its values.

    shape: the logical one, as torch has it when the weight is dense; of a padded weight the stored one (`multiples`).
    dtype: torch's name of the stored type, or the format's own (`q4_k`, `nvfp4`) of a packed one.
    packing: what kind of packed tensor `Format.read` gives; None: a plain one.
    stored_bytes: bytes in the file, if they are not those of `shape` in `dtype`.
    multiples: for each side of `shape`, to a multiple of what the true side was padded; empty: to none.
    format: reads it; None: whichever format the file is of.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    packing: str | None = None
    stored_bytes: int | None = None
    multiples: tuple[int, ...] = ()
    format: Format | None = field(default=None, repr=False, compare=False)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its values in the file."""
        return self.numel * BITS.get(self.dtype, 64) // 8 if self.stored_bytes is None else self.stored_bytes

    def could_be(self, shape: tuple[int, ...]) -> bool:
        """Whether this is a weight of that shape, padded or not."""
        if not self.multiples or len(shape) != len(self.shape):
            return shape == self.shape
        sides = zip(self.shape, shape, self.multiples, strict=True)
        return all(-(-side // multiple) * multiple == stored for stored, side, multiple in sides)


@dataclass(frozen=True)
class FileHeader:
    """What a file holds.

    tensors: by logical names alone: scales and whatever else belongs to a packed weight are inside it.
    entries: what the hash is made from, logical names and shapes, so that a quantised file has the hash of the plain
    one; pickled files also have nested dictionaries.
    """

    tensors: dict[str, TensorInfo]
    entries: Entries
    metadata: dict[str, Any] = field(default_factory=dict)


class Format:
    """A kind of weight file.

    name: how messages call it. suffixes: endings of its files, in small letters. magic: the first bytes of its files,
    if all have the same.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: bytes = b""

    def recognises(self, start: bytes) -> bool:
        """Whether a file that begins with these (up to 64) bytes is one of this format."""
        return bool(self.magic) and start.startswith(self.magic)

    def reads_in_parts(self, file: Path) -> bool:
        """Whether `read` of some names costs no more than these; if not, it is called once for all of them."""
        return True

    def together(self, files: Sequence[Path]) -> Format:
        """What reads files that are one checkpoint, if a weight may lie in several of them; by default this format.

        It reads each of them with the methods below.
        """
        return self

    def read_header(self, file: Path) -> FileHeader:
        """Names and logical shapes, without data, in time and memory bounded by the header's true size.

        Raises CheckpointError, in one line.
        """
        raise NotImplementedError

    def read(
        self, file: Path, names: Iterable[str], device: torch.device | str
    ) -> Iterator[tuple[str, Tensor | PackedTensor]]:
        """The weights of these names, one after another, on a device; on the CPU they may stay mapped from the file.

        Raises CheckpointError, in one line, for what is missing or damaged.
        """
        raise NotImplementedError
