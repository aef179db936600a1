"""The names, shapes and dtypes in a model file, read without its data.

`read_header([shard, shard, ...])` gives the union over all shards of one checkpoint. A safetensors header is parsed and
checked here, because files come from anywhere; pickled files go through torch's restricted unpickler, memory-mapped.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

from omniavatar.checkpoints.hashing import Entries, fingerprint
from omniavatar.errors import CheckpointError, is_failure, parsing

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED)
MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 100_000
"""More than any published model has."""
MAX_DEPTH = 50
"""Dictionaries inside each other in a pickled file."""
WRAPPERS = ("state_dict", "module", "model_state")
"""A pickled file whose only top-level entry has one of these names is unwrapped."""

DTYPES = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "U16": ("uint16", 16),
    "I16": ("int16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "U32": ("uint32", 32),
    "I32": ("int32", 32),
    "F32": ("float32", 32),
    "U64": ("uint64", 64),
    "I64": ("int64", 64),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
}
"""safetensors dtype code -> (torch's name, bits per element)."""
BITS = dict(DTYPES.values())


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file, without its values."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.numel * BITS.get(self.dtype, 64) // 8


@dataclass(frozen=True)
class Header:
    """What the header of a checkpoint says; `entries` also holds the nested dictionaries of pickled files."""

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    entries: Entries = field(repr=False)

    @cached_property
    def hash(self) -> str:
        return fingerprint(self.entries)

    @property
    def num_params(self) -> int:
        return sum(tensor.numel for tensor in self.tensors.values())


def read_header(files: Sequence[Path]) -> Header:
    """The names and shapes of a checkpoint, all shards together; a name that two shards share is an error."""
    tensors: dict[str, TensorInfo] = {}
    entries: dict[str, Any] = {}
    for file in files:
        found, found_entries = read_file_header(file)
        for name in found_entries:
            if name in entries:
                raise CheckpointError(
                    f"{file}: tensor '{name}' is also in another of the {len(files)} files given together"
                )
        tensors |= found
        entries |= found_entries
    return Header(tuple(files), tensors, entries)


def read_file_header(file: Path) -> tuple[dict[str, TensorInfo], Entries]:
    """The tensors of one file and the entries that make its hash."""
    check_readable(file)
    if file.suffix == ".safetensors":
        tensors = read_safetensors_header(file)
        return tensors, {name: tensor.shape for name, tensor in tensors.items()}
    if file.suffix in PICKLED:
        return read_pickled_header(file)
    raise CheckpointError(f"{file} is not a model file by its name; known endings: {', '.join(SUFFIXES)}")


def check_readable(file: Path) -> None:
    """Turn the usual accidents of downloads into one clear line each."""
    try:
        with file.open("rb") as stream:
            start = stream.read(24)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    if not start:
        raise CheckpointError(f"{file} is empty; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} is a Git LFS pointer, not the model itself; fetch it with 'git lfs pull'")


# --- safetensors: 8 bytes little-endian header length n, n bytes of JSON, then the data


def read_safetensors_header(file: Path) -> dict[str, TensorInfo]:
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
    places: list[tuple[int, int]] = []
    for name, entry in _parse_json(file, text).items():
        if name != "__metadata__":
            tensors[name], place = _checked_tensor(file, name, entry)
            places.append(place)
    used = max((end for _, end in places), default=0)
    if used != size - 8 - length:
        raise _damaged(file, f"its header describes {used} bytes of data, the file holds {size - 8 - length}")
    _check_contiguous(file, sorted(places))
    return tensors


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
    torch_name, bits = DTYPES.get(str(fields.get("dtype")), ("", 0))
    if not torch_name:
        raise _damaged(file, f"tensor '{name[:80]}' has the unknown dtype {str(fields.get('dtype'))[:40]!r}")
    shape, offsets = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise _damaged(file, f"tensor '{name[:80]}' has no valid shape and data_offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * bits // 8:
        raise _damaged(file, f"tensor '{name[:80]}' spans {end - begin} bytes, which does not fit its shape and dtype")
    return TensorInfo(name, shape, torch_name, file), (begin, end)


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A list of non-negative integers, if it is one."""
    if isinstance(value, list) and all(type(size) is int and size >= 0 for size in value):
        return tuple(value)
    return None


def _damaged(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{file} is damaged or not a safetensors file: {reason}; download it again")


# --- pickled files (.pth): zip archives, or torch's legacy format from before 1.6


def read_pickled_header(file: Path) -> tuple[dict[str, TensorInfo], Entries]:
    """Names and shapes of a pickled checkpoint; tensors lie on the meta device, so no data is read."""
    content = unpickle(file, data=False)
    tensors = {
        name: TensorInfo(name, tuple(value.shape), str(value.dtype).removeprefix("torch."), file)
        for name, value in content.items()
        if hasattr(value, "dtype")
    }
    return tensors, _entries(content)


def check_bounded(file: Path, content: Any) -> None:
    """Refuse dictionaries that hold themselves, or each other so often that no work on them would end."""
    count, waiting = 0, [(content, 1)] if isinstance(content, Mapping) else []
    while waiting:
        inner, depth = waiting.pop()
        count += len(inner)
        if depth > MAX_DEPTH or count > MAX_TENSORS:
            what = f"more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else f"with more than {MAX_TENSORS} entries"
            raise CheckpointError(f"{file} holds dictionaries {what}, as no model does; download it again")
        waiting += [(value, depth + 1) for value in inner.values() if isinstance(value, Mapping)]


def _entries(content: Mapping[Any, Any]) -> Entries:
    """Shapes of tensors and, nested, of dictionaries of tensors; anything else is no part of the hash."""
    entries: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            entries[str(name)] = _entries(value)
        elif hasattr(value, "dtype") and hasattr(value, "shape"):
            entries[str(name)] = tuple(value.shape)
    return entries


def unpickle(file: Path, *, data: bool) -> dict[str, Any]:
    """The unwrapped content of a pickled checkpoint: values memory-mapped, or without `data` names and shapes only.

    A legacy file cannot be mapped: its data is skipped (by torch 2.7 and later), or read into memory whole.
    """
    try:
        with catch_warnings(action="ignore"):  # torch warns of what follows as an error
            content = _load_zip(file, data) if is_zip(file) else _load_legacy(file, data)
    except CheckpointError:
        raise
    except BaseException as error:
        if not is_failure(error) or (data and isinstance(error, MemoryError)):  # then the machine is short of memory
            raise
        raise CheckpointError(
            f"{file} is damaged or holds more than tensors ({type(error).__name__}); "
            "download it again, or save its plain state dict"
        ) from error
    check_bounded(file, content)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a state dict")
    if len(content) == 1:
        wrapper, inner = next(iter(content.items()))
        if wrapper in WRAPPERS and isinstance(inner, Mapping):
            content = inner
    for name in content:
        if not isinstance(name, str):
            raise CheckpointError(f"{file} has an entry named {name!r}, which no tensor is; save its plain state dict")
    return dict(content)


def is_zip(file: Path) -> bool:
    """Whether a pickled file is in torch's zip format, which can be memory-mapped."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _load_zip(file: Path, data: bool) -> Any:
    import torch

    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith("/data.pkl") and entry.file_size > MAX_HEADER_BYTES:
                raise ValueError(f"names and shapes that take {entry.file_size} bytes")
    return torch.load(file, map_location="cpu" if data else "meta", mmap=True, weights_only=True)


def _load_legacy(file: Path, data: bool) -> Any:
    import torch

    if data:
        return torch.load(file, map_location="cpu", weights_only=True)
    can_skip = torch.__version__ >= "2.7"
    with torch.serialization.skip_data() if can_skip else nullcontext():
        content = torch.load(file, map_location="cpu", weights_only=True)
    check_bounded(file, content)
    needed = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(content)}.values())
    if needed > file.stat().st_size:
        raise ValueError(f"{needed} bytes of tensors in a smaller file")
    return content


def _tensors(content: Any) -> list[Tensor]:
    if isinstance(content, Mapping):
        return [tensor for value in content.values() for tensor in _tensors(value)]
    return [content] if hasattr(content, "untyped_storage") else []
