"""Pickled files of torch: zip archives, or the format from before 1.6; always by torch's restricted unpickler."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

from omniavatar.checkpoints.formats.base import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    FileHeader,
    Format,
    PackedTensor,
    TensorInfo,
)
from omniavatar.checkpoints.hashing import Entries
from omniavatar.errors import CheckpointError, is_failure

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

MAX_DEPTH = 50
"""Dictionaries inside each other in a pickled file."""
MOST_SHARED = 4
"""How many times the size of a file its tensors may have, where some share what is stored."""
WRAPPERS = ("state_dict", "module", "model_state")
"""A pickled file whose only top-level entry has one of these names is unwrapped."""
ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""The pickled number with which torch before 1.6 began."""


class Pickled(Format):
    """torch.save's files."""

    name = "pickle"
    suffixes = (".pth", ".pt", ".bin", ".ckpt")

    def recognises(self, start: bytes) -> bool:
        return start.startswith((ZIP, LEGACY))

    def reads_in_parts(self, file: Path) -> bool:
        """A zip archive is mapped; a legacy file is read whole."""
        return is_zip(file)

    def read_header(self, file: Path) -> FileHeader:
        """Names and shapes; tensors lie on the meta device, so no data is read."""
        content = unpickle(file, data=False)
        tensors = {
            name: TensorInfo(name, tuple(value.shape), str(value.dtype).removeprefix("torch."), file)
            for name, value in flat(content).items()
        }
        return FileHeader(tensors, _entries(content))

    def read(
        self, file: Path, names: Iterable[str], device: torch.device | str
    ) -> Iterator[tuple[str, Tensor | PackedTensor]]:
        """A mapped file is moved tensor by tensor."""
        if not is_zip(file):
            log.info("%s is in torch's legacy format, which cannot be memory-mapped: it is read whole", file)
        content = flat(unpickle(file, data=True))
        for name in names:
            yield name, content.pop(name).to(device)


def flat(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested dictionaries, each under the names on the way to it, joined with dots."""
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            tensors |= flat(value, f"{prefix}{name}.")
        elif hasattr(value, "dtype") and hasattr(value, "shape"):
            tensors[f"{prefix}{name}"] = value
    return tensors


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


def check_stored(file: Path, content: Any) -> None:
    """Refuse tensors that are far larger than the file: one number that it stores can stand for any amount."""
    tensors, size = _tensors(content), file.stat().st_size
    stored = sum({storage._cdata: storage.nbytes() for storage in (one.untyped_storage() for one in tensors)}.values())
    made = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if stored > size:
        raise CheckpointError(
            f"{file} is damaged: its tensors take {stored} bytes, the file has {size}; download it again"
        )
    if made > MOST_SHARED * size:
        raise CheckpointError(
            f"{file} would make {made} bytes of tensors, the file has {size}; save its state dict with every tensor "
            "made contiguous"
        )


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
        check_bounded(file, content)
        check_stored(file, content)
    except CheckpointError:
        raise
    except BaseException as error:
        if not is_failure(error) or (data and isinstance(error, MemoryError)):  # then the machine is short of memory
            raise
        raise CheckpointError(
            f"{file} is damaged or holds more than tensors ({type(error).__name__}); "
            "download it again, or save its plain state dict"
        ) from error
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
        return stream.read(len(ZIP)) == ZIP


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
        return torch.load(file, map_location="cpu", weights_only=True)


def _tensors(content: Any) -> list[Tensor]:
    if isinstance(content, Mapping):
        return [tensor for value in content.values() for tensor in _tensors(value)]
    return [content] if hasattr(content, "untyped_storage") else []
