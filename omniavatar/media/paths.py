"""The checks every input file gets before a decoder sees it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from omniavatar.errors import InputError


def shown(path: str | os.PathLike[str]) -> str:
    """A path as error messages quote it: one line, whatever characters the name has."""
    return repr(os.fspath(path))


def input_file(path: str | os.PathLike[str], what: str) -> Path:
    """The path, if it is a readable regular file with content; `what` ("image", "audio") names it in errors."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{what} {shown(path)} is a folder; give a file")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{what} {shown(path)} is a device or a pipe; give a regular file")
        with open(path, "rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise InputError(f"{what} {shown(path)} does not exist; looked in {shown(Path.cwd())}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{what} {shown(path)} cannot be read: {reason}") from None
    if empty:
        raise InputError(f"{what} {shown(path)} is empty (0 bytes)")
    return Path(path)
