"""A hidden folder beside the file to be made, in which it grows until one rename publishes it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = ".omniavatar-"
_NAME_LIMIT = 255


def sibling_name(target: Path, kind: str, number: int = 1) -> str:
    """The name of a second file beside `target`: talk.mp4 -> talk.KIND.mp4, or talk.KIND-2.mp4 with a number.

    The stem is cut where the name would be longer than the file system allows.
    """
    ending = f".{kind}{target.suffix}" if number == 1 else f".{kind}-{number}{target.suffix}"
    room = _name_limit(target.parent) - len(os.fsencode(ending))
    stem = target.stem
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + ending


def claim(target: Path, kind: str) -> Path:
    """Make an empty file beside `target` under the first `sibling_name` that is free; no other program gets that name.

    Raises OSError if the folder cannot be written.
    """
    for number in itertools.count(1):
        path = target.with_name(sibling_name(target, kind, number))
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return path
    raise AssertionError("numbers do not end")


class Workspace:
    """A folder of our own beside `target`, on its file system, so that files in it reach their place by a rename.

    Makes missing folders above it. Raises OSError if that is not allowed.
    """

    def __init__(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path = Path(tempfile.mkdtemp(dir=target.parent, prefix=_PREFIX))
        self._name = target.name
        self._handle = os.open(self._path, os.O_RDONLY)

    @property
    def path(self) -> Path:
        """Where it lies now: Linux finds it again if a folder above it was renamed meanwhile."""
        with contextlib.suppress(OSError):
            if not self._path.exists():
                self._path = Path(os.readlink(f"/proc/self/fd/{self._handle}"))
        return self._path

    @property
    def target(self) -> Path:
        """The place of the whole file: beside the workspace, wherever that lies now."""
        return self.path.with_name(self._name)

    def publish(self, file: Path, *, overwrite: bool = True) -> Path:
        """Rename a file of the workspace to the target, which it replaces if it may. Raises OSError."""
        if not overwrite and os.path.lexists(self.target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.replace(file, self.target)
        return self.target

    def publish_as(self, kind: str, file: Path) -> Path:
        """Rename a file of the workspace to a free `sibling_name` of the target. Raises OSError."""
        place = claim(self.target, kind)
        try:
            os.replace(file, place)
        except OSError:
            with contextlib.suppress(OSError):
                place.unlink()
            raise
        return place

    def remove(self, *, but: Path | None = None) -> None:
        """Remove it with all that it holds, except the file `but`; what cannot be removed stays."""
        if but is None:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            for file in self.path.iterdir():
                if file != but:
                    with contextlib.suppress(OSError):
                        file.unlink()
        os.close(self._handle)


def _name_limit(folder: Path) -> int:
    """Bytes that a file's name may have in a folder, which need not exist yet."""
    for parent in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return os.pathconf(parent, "PC_NAME_MAX")
    return _NAME_LIMIT
