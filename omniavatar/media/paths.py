"""The checks every input file gets before a decoder sees it."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import weakref
from pathlib import Path

from omniavatar.errors import InputError


class HeldFile(type(Path())):  # type: ignore[misc]  # the path class of this system
    """The path of a temporary file that is deleted when nobody holds this object any more."""

    content_size: int | None = None

    @classmethod
    def holding(cls, content: bytes) -> HeldFile:
        """A new file with this content."""
        handle, name = tempfile.mkstemp(prefix="omniavatar-")
        held = cls(name)
        weakref.finalize(held, _remove, name)
        with open(handle, "wb") as file:
            file.write(content)
        held.content_size = len(content)
        return held


def _remove(name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)


def shown(path: str | os.PathLike[str]) -> str:
    """A path as error messages quote it: one line, whatever characters the name has."""
    size = getattr(path, "content_size", None)
    return repr(os.fspath(path)) if size is None else f"of {size} bytes in memory"


def of_user(path: str | os.PathLike[str], what: str) -> Path:
    """The path with a leading `~` replaced by the home folder. Raises InputError for an empty one.

    what: names the file in errors.
    """
    text = os.fspath(path)
    if not text or (isinstance(path, Path) and path == Path()):  # Path("") is the current folder
        raise InputError(f"{what}: the path is empty; give the name of a file")
    expanded = os.path.expanduser(text)
    return path if isinstance(path, Path) and expanded == text else Path(expanded)


def input_file(path: str | os.PathLike[str], what: str) -> Path:
    """The path, if it is a readable regular file with content; `what` ("image", "audio") names it in errors.

    A leading `~` is the home folder, and links are followed.
    """
    file_path = of_user(path, what)
    try:
        status = os.stat(file_path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{what} {shown(path)} is a folder; give a file")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{what} {shown(path)} is a device or a pipe; give a regular file")
        with open(file_path, "rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise InputError(f"{what} {shown(path)} does not exist; looked in {shown(Path.cwd())}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{what} {shown(path)} cannot be read: {reason}") from None
    if empty:
        raise InputError(f"{what} {shown(path)} is empty (0 bytes)")
    return file_path
