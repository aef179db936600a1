"""The folder that a run writes to: it can be written, and belongs to one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from omniavatar.errors import InputError, OutputError

LOCK = ".lock"


@contextmanager
def claimed(folder: Path, field: str) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if need be, for the time of a with-block.

    field: what the configuration calls it.

    Raises OutputError if nothing can be written there, and InputError if another run does.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except (FileExistsError, NotADirectoryError):
        raise OutputError(f"{field} '{folder}' is a file or lies in one; name a folder") from None
    except OSError as error:
        raise OutputError(f"cannot write in {field} '{folder}': {error.strerror}; name another folder") from None
    with file:  # the lock ends with the process, however that ends
        if not locked(file):
            raise InputError(f"another run works in '{folder}'; wait until it has ended, or name another {field}")
        yield


def locked(file: IO[str]) -> bool:
    """Whether this process has the lock of a file, or there are no locks here."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True
