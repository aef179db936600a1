"""The formats of one program, and which of them a file is of: its first bytes decide, then its name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniavatar.checkpoints.formats.base import Format
from omniavatar.checkpoints.formats.pickled import Pickled
from omniavatar.checkpoints.formats.safetensors import Safetensors
from omniavatar.errors import CheckpointError

BUILTIN: tuple[Format, ...] = (Safetensors(), Pickled())
START = 64
"""Bytes of a file by which its format is recognised."""


@dataclass(frozen=True)
class Elsewhere:
    """A format that a package reads which may not be installed."""

    name: str
    suffix: str
    magic: bytes
    package: str


ELSEWHERE = (Elsewhere("GGUF", ".gguf", b"GGUF", "omniavatar-gguf"),)


class Formats:
    """Weight formats in the order in which they are asked."""

    def __init__(self, formats: Iterable[Format] = BUILTIN) -> None:
        self.formats = tuple(formats)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The endings of all model files."""
        return tuple(dict.fromkeys(suffix for known in self.formats for suffix in known.suffixes))

    def of(self, file: Path) -> Format:
        """The format of a file. Raises CheckpointError if it is none, or another than its name says."""
        start = check_readable(file)
        suffix = file.suffix.lower()
        by_name = next((known for known in self.formats if suffix in known.suffixes), None)
        by_content = next((known for known in self.formats if known.recognises(start)), None)
        names = {name for known in self.formats for name in (known.name, known.name.upper())}
        absent = next((one for one in ELSEWHERE if one.name not in names and start.startswith(one.magic)), None)
        if absent is not None:
            raise CheckpointError(
                f"{file} is a {absent.name} file by its content; install {absent.package}, which reads these, "
                f"and let its name end in {absent.suffix}"
            )
        named = by_name.name if by_name else next((one.name for one in ELSEWHERE if suffix == one.suffix), None)
        if by_content is not None and by_content is not by_name and named is not None:
            raise CheckpointError(
                f"{file} is not a {named} file, as its name says: its content is {by_content.name}; "
                f"rename it to end in {by_content.suffixes[0]}"
            )
        found = by_content or by_name
        if found is None:
            raise CheckpointError(
                f"{file} is not a model file by its name or content; known endings: {', '.join(self.suffixes)}"
            )
        return found


def check_readable(file: Path) -> bytes:
    """The first bytes of a file; the usual accidents of downloads become one clear line each."""
    try:
        with file.open("rb") as stream:
            start = stream.read(START)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    if not start:
        raise CheckpointError(f"{file} is empty; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} is a Git LFS pointer, not the model itself; fetch it with 'git lfs pull'")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{file} is a web page, not a model, as a download without permission gives; log in and download it again"
        )
    return start


def format_fault(found: Any) -> str:
    """Why an object is no weight format, in one line; nothing if it is one."""
    if not isinstance(found, Format):
        return f"{found!r} is no Format of omniavatar.checkpoints.formats"
    name = getattr(found, "name", None)
    if not (isinstance(name, str) and name):
        return f"format {type(found).__name__} has no name, but {name!r}"
    suffixes = getattr(found, "suffixes", None)
    if not (
        isinstance(suffixes, tuple)
        and suffixes
        and all(isinstance(suffix, str) and suffix.startswith(".") and suffix.islower() for suffix in suffixes)
    ):
        return f"format '{name}' needs suffixes such as ('.gguf',) in small letters, not {suffixes!r}"
    if not isinstance(found.magic, bytes):
        return f"format '{name}' needs bytes as its magic, not {found.magic!r}"
    missing = [hook for hook in ("read_header", "read") if getattr(type(found), hook) is getattr(Format, hook)]
    return f"format '{name}' has no {missing[0]} of its own" if missing else ""
