"""Texts inside an mp4 file: what a player shows as its title, and what a program wrote down about how it was made."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from omniavatar.errors import InputError
from omniavatar.media import ffmpeg
from omniavatar.media.paths import shown

METADATA_KEYS = ("title", "artist", "album", "date", "genre", "comment", "copyright", "description", "synopsis")

_LONGEST = 100_000
_OF_THE_CONTAINER = frozenset(("major_brand", "minor_version", "compatible_brands", "encoder"))
_ENTRY = re.compile(r"((?:[^=\\\n]|\\.)+)=((?:[^\\\n]|\\.)*)\n", re.DOTALL)


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Make sure that an mp4 file keeps these texts. Raises ValueError."""
    for key, text in metadata.items():
        if key not in METADATA_KEYS:
            raise ValueError(f"an mp4 file has no metadata {key!r}; choices: {', '.join(METADATA_KEYS)}")
        if "\0" in text or len(text.encode()) > _LONGEST:
            raise ValueError(f"the metadata {key!r} must be shorter than {_LONGEST} bytes and without zero bytes")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts of a media file, such as `{"comment": ...}`. Raises InputError if it is none that ffmpeg can read."""
    ffmpeg.describe(path, "video")
    try:
        listed = ffmpeg.run([*ffmpeg.source(path), "-f", "ffmetadata", "pipe:1"]).decode(errors="replace")
    except ffmpeg.FfmpegError as error:
        raise InputError(f"video {shown(path)} cannot be read: {error}") from None
    entries: dict[str, str] = {}
    end = listed.find("\n") + 1
    while entry := _ENTRY.match(listed, end):  # until a section of a chapter or stream begins
        entries[_plain(entry[1])], end = _plain(entry[2]), entry.end()
    return {key: text for key, text in entries.items() if key not in _OF_THE_CONTAINER}


def _plain(escaped: str) -> str:
    """A text without the backslashes that ffmpeg writes before `=`, `;`, `#`, backslashes and ends of lines."""
    return re.sub(r"\\(.)", r"\1", escaped, flags=re.DOTALL)
