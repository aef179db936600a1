"""What programs have in memory instead of a file: arrays, tensors, the bytes of a file, file objects."""

from __future__ import annotations

import sys
from typing import Any

from omniavatar.errors import InputError
from omniavatar.lazy import np


def as_array(value: Any) -> np.ndarray | None:
    """An array, or a tensor of any device, as an array; None of anything else. Half precision becomes float32."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float32) if value.dtype == np.float16 else value
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    array: np.ndarray = (value.float() if value.is_floating_point() else value).numpy(force=True)
    return array


def content_of(value: Any, name: str) -> bytes | None:
    """The bytes of an encoded file: those given, or all that a file object holds; None of anything else.

    A file object that can seek is read from its beginning and left where it was. Raises InputError if there are none.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
    elif callable(getattr(value, "read", None)):
        content = _all_of(value, name)
    else:
        return None
    if not content:
        raise InputError(f"{name} is empty (0 bytes)")
    return content


def _all_of(file: Any, name: str) -> bytes:
    try:
        place = file.tell() if file.seekable() else None
        if place is not None:
            file.seek(0)
        content = file.read()
        if place is not None:
            file.seek(place)
    except (OSError, ValueError) as error:  # ValueError: it is closed, or the text in it is in another encoding
        raise InputError(f"{name}: the file object cannot be read: {error}") from None
    if not isinstance(content, bytes):
        raise InputError(f"{name}: the file object gives {type(content).__name__}; open the file with mode 'rb'")
    return content


def described(value: Any) -> str:
    """What a value is, for error messages: "Tensor (3, 512) float32", "ndarray (5,) int64", "dict"."""
    words = [type(value).__name__]
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        words += [str(tuple(value.shape)), str(value.dtype).removeprefix("torch.")]
    return " ".join(words)
