"""The hash by which a published checkpoint is recognised: md5 over the names and shapes of its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

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
