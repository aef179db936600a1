"""safetensors: 8 bytes little-endian header length n, n bytes of JSON, then the data.

The header is parsed and checked here, because files come from anywhere; the data is read by the library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar.checkpoints.formats.base import (
    BITS,
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    FileHeader,
    Format,
    PackedTensor,
    TensorInfo,
)
from omniavatar.checkpoints.formats.quantised import Packing, is_marker, packings
from omniavatar.errors import CheckpointError, parsing, shortened

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}
"""safetensors' code -> torch's name of a dtype."""


@dataclass(frozen=True)
class Contents:
    """A checked header as it stands in the file. data: where the data begins, in bytes from the start of the file."""

    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, Any]
    data: int


class Safetensors(Format):
    """safetensors files.

    files: the shards of one checkpoint that are read together, since what belongs to a weight may lie in another one;
    empty: each file is for itself.
    """

    name = "safetensors"
    suffixes = (".safetensors", ".sft")

    def __init__(self, files: Sequence[Path] = ()) -> None:
        self.files = tuple(files)

    def recognises(self, start: bytes) -> bool:
        """The header is a JSON object whose length stands before it; no magic number says more."""
        return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES

    def together(self, files: Sequence[Path]) -> Safetensors:
        """See `Format.together`."""
        return Safetensors(files)

    def read_header(self, file: Path) -> FileHeader:
        """See `Format.read_header`; the descriptions of quantised layers, which are tensors, are read as well."""
        contents, weights = self._examined(file)
        infos = [weight.info if isinstance(weight, Packing) else weight for weight in weights.values()]
        own = {info.name: info for info in infos if info.file == file}
        return FileHeader(own, {name: info.shape for name, info in own.items()}, dict(contents[file].metadata))

    def read(
        self, file: Path, names: Iterable[str], device: torch.device | str
    ) -> Iterator[tuple[str, Tensor | PackedTensor]]:
        """See `Format.read`; on the meta device the file is not opened again."""
        from omniavatar.checkpoints.formats.packing import packed

        contents, weights = self._examined(file)
        is_meta = str(device) == "meta"
        with Opened(contents, device) as data:
            for name in names:
                weight = weights.get(name)
                if weight is None:
                    raise CheckpointError(f"{file} has no tensor '{name}'; has it been changed?")
                if isinstance(weight, Packing):
                    parts = {part: data.tensor(weight.files[part], own) for part, own in weight.parts.items()}
                    yield name, packed(file, weight, parts, is_read=not is_meta)
                else:
                    yield name, data.tensor(weight.file, name)

    def _examined(self, file: Path) -> tuple[Mapping[Path, Contents], Weights]:
        return examined(self.files if file in self.files else (file,))


class Opened(ExitStack):
    """Files whose tensors the library reads, each opened when it is needed; on the meta device none is."""

    def __init__(self, contents: Mapping[Path, Contents], device: torch.device | str) -> None:
        super().__init__()
        self.contents, self.device = contents, device
        self.open: dict[Path, Any] = {}

    def tensor(self, file: Path, name: str) -> Tensor:
        """A tensor by its name in a file. Raises CheckpointError for what the library cannot read."""
        import torch

        if str(self.device) == "meta":
            info = self.contents[file].tensors[name]
            return torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta")
        if file not in self.open:
            self.open[file] = self.enter_context(opened(file, self.device))
        tensor: Tensor = self.open[file].get_tensor(name)
        return tensor


@contextmanager
def opened(file: Path, device: torch.device | str) -> Iterator[Any]:
    """A file whose tensors the library reads. Raises CheckpointError for what it cannot."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device=str(device)) as data:
            yield data
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; download it again") from error


Weights = Mapping[str, Packing | TensorInfo]


def examined(files: Sequence[Path]) -> tuple[Mapping[Path, Contents], Weights]:
    """The headers of files and their weights by logical names, packed or plain; anew when one has changed."""
    stamps = []
    for file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}; download it again") from error
        stamps.append((file, state.st_size, state.st_mtime_ns))
    return _examined(tuple(stamps))


@lru_cache(maxsize=32)
def _examined(stamps: tuple[tuple[Path, int, int], ...]) -> tuple[Mapping[Path, Contents], Weights]:
    contents = {file: read_contents(file) for file, _, _ in stamps}
    tensors: dict[str, TensorInfo] = {}
    for file, content in contents.items():
        for name, info in content.tensors.items():
            if name in tensors and not is_marker(name):  # each shard may have one that says what they all are
                raise CheckpointError(
                    f"{file}: tensor '{shortened(name)}' is also in another of the {len(contents)} files given together"
                )
            tensors[name] = info

    def read(info: TensorInfo) -> bytes:
        content = contents[info.file]
        begin, end = content.places[info.name]
        with info.file.open("rb") as stream:
            stream.seek(content.data + begin)
            return stream.read(end - begin)

    return contents, packings(tensors, {file: content.metadata for file, content in contents.items()}, read)


def read_contents(file: Path) -> Contents:
    """Parse and check the header; no tensor data is read, whatever the file's size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(file, f"its header should have {length} bytes, the file has {size}")
        if length > MAX_HEADER_BYTES:
            raise _damaged(file, f"its header would have {length} bytes, more than the {MAX_HEADER_BYTES} allowed")
        text = stream.read(length)
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, tuple[int, int]] = {}
    header = _parse_json(file, text)
    metadata = header.pop("__metadata__", None)
    for name, entry in header.items():
        tensors[name], places[name] = _checked_tensor(file, name, entry)
    used = max((end for _, end in places.values()), default=0)
    if used != size - 8 - length:
        raise _damaged(file, f"its header describes {used} bytes of data, the file holds {size - 8 - length}")
    _check_contiguous(file, sorted(places.values()))
    return Contents(tensors, places, metadata if isinstance(metadata, dict) else {}, 8 + length)


def _check_contiguous(file: Path, places: Sequence[tuple[int, int]]) -> None:
    """Each tensor begins where the one before it ends."""
    position = 0
    for begin, end in places:
        if begin != position:
            raise _damaged(file, f"its tensors overlap or leave a gap at byte {min(begin, position)} of the data")
        position = end


def _parse_json(file: Path, text: bytes) -> dict[str, Any]:
    with parsing(lambda reason: _damaged(file, f"its header is not valid JSON ({reason})")):
        header = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    if len(header) > MAX_TENSORS:
        raise _damaged(file, f"its header names {len(header)} tensors, more than the {MAX_TENSORS} allowed")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name appears twice")
    return dict(pairs)


def _checked_tensor(file: Path, name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """One entry of the header and where its data begins and ends, in bytes."""
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    torch_name = DTYPES.get(str(fields.get("dtype")), "")
    if not torch_name:
        raise _damaged(file, f"tensor '{name[:80]}' has the unknown dtype {str(fields.get('dtype'))[:40]!r}")
    shape, offsets = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        raise _damaged(file, f"tensor '{name[:80]}' has no valid shape and data_offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * BITS[torch_name] // 8:
        raise _damaged(file, f"tensor '{name[:80]}' spans {end - begin} bytes, which does not fit its shape and dtype")
    return TensorInfo(name, shape, torch_name, file), (begin, end)


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A list of non-negative integers, if it is one."""
    if isinstance(value, list) and all(type(size) is int and size >= 0 for size in value):
        return tuple(value)
    return None


def _damaged(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{file} is damaged or not a safetensors file: {reason}; download it again")
