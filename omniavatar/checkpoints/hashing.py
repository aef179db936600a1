"""The hash by which a published checkpoint is recognised: md5 over the names and shapes of its tensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Entries = Mapping[str, "Sequence[int] | Entries"]
"""Name -> shape of a tensor, or -> a nested dictionary of the same form (pickled files only)."""


def fingerprint(entries: Entries, *, shapes: bool = True) -> str:
    """md5 (32 hex digits) of a whole checkpoint, all its shards together; without `shapes` of the names alone."""
    return hashlib.md5(_joined(entries, shapes).encode(), usedforsecurity=False).hexdigest()


def _joined(entries: Entries, shapes: bool) -> str:
    """All items in code-point order; the order mixes the two items of a name with those of other names."""
    return ",".join(sorted(_items(entries, shapes)))


def _items(entries: Entries, shapes: bool) -> Iterator[str]:
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield f"{name}|{_joined(value, shapes)}"
            continue
        if shapes:
            yield f"{name}:{'_'.join(str(size) for size in value)}"
        yield name


def content_sample(path: Path, pieces: int = 64, length: int = 65536) -> bytes:
    """A digest of a file's size and of evenly spaced pieces of it, which tells other weights: they differ all over."""
    content = hashlib.blake2b(digest_size=16)
    size = os.path.getsize(path)
    content.update(str(size).encode())
    with open(path, "rb") as file:
        for piece in range(pieces):
            file.seek(max(0, (size - length) * piece // max(1, pieces - 1)))
            content.update(file.read(length))
    return content.digest()
