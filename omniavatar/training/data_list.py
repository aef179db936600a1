"""Lists of training clips: a folder, a CSV or JSONL file of videos, their sounds and their prompts."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from omniavatar.errors import InputError, nearest
from omniavatar.media.paths import shown
from omniavatar.units.prompt import Prompt

DEFAULT_PROMPT: str = Prompt.Inputs.model_fields["prompt"].default
"""What inference takes without a prompt."""

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
SOUND_SUFFIXES = (".wav", ".mp3", ".flac", ".m4a")
"""Of a sound beside a video; the first that is there counts."""
COLUMNS = ("video", "audio", "prompt")


@dataclass(frozen=True)
class Entry:
    """A clip to train on. audio: the file of its sound, None for the video's own. place: where the list names it."""

    video: Path
    audio: Path | None
    prompt: str
    place: str


def read_entries(path: Path, prompt: str = DEFAULT_PROMPT) -> list[Entry]:
    """The clips that a folder holds or a list names, in its order; `prompt` goes to those without one of their own.

    A folder gives every video in it and below it, hidden ones left out, in alphabetical order; `NAME.txt` beside a
    video is its prompt and `NAME.wav` (or .mp3, .flac, .m4a) its sound. A `.csv` file has a header with the column
    video and, if wanted, audio and prompt; a `.jsonl` file has an object with these keys on each line. Relative paths
    start at the list's folder. Whether videos and sounds exist shows when they are opened.
    Raises InputError for a list that cannot be read, with the line.
    """
    if path.is_dir():
        entries = list(_in_folder(path, prompt))
        empty = f"the folder {shown(path)} holds no video; it needs files that end in {', '.join(VIDEO_SUFFIXES)}"
    else:
        readers = {".csv": _csv_rows, ".jsonl": _json_rows}
        reader = readers.get(path.suffix.lower())
        if reader is None and path.exists():
            raise InputError(f"{shown(path)} is not a list of clips; give a folder, a .csv or a .jsonl file")
        text = _text(path, "the list of clips")
        assert reader is not None
        entries = [_entry(path, line, row, prompt) for line, row in reader(path, text)]
        empty = f"the list {shown(path)} names no clip; add lines with at least a video"
    if not entries:
        raise InputError(empty)
    return entries


def _in_folder(folder: Path, prompt: str) -> Iterator[Entry]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        present = {(Path(name).stem, Path(name).suffix.lower()): Path(parent, name) for name in sorted(names)}
        for name in sorted(names):
            video = Path(parent, name)
            if video.suffix.lower() not in VIDEO_SUFFIXES or name.startswith("."):
                continue
            written = present.get((video.stem, ".txt"))
            text = " ".join(_text(written, "the prompt").split()) if written else ""
            sounds = (present.get((video.stem, suffix)) for suffix in SOUND_SUFFIXES)
            yield Entry(video, next(filter(None, sounds), None), text or prompt, shown(video))


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read {what} {shown(path)}: {reason}") from None


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows by the header's names, with the number of the line in which each begins."""
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            here, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(path, here, [cell.strip() for cell in cells])
            elif len(cells) > len(header):
                raise InputError(
                    f"{path}:{here}: {len(cells)} values for {len(header)} columns; "
                    "put quotation marks around a value that holds commas"
                )
            else:
                yield here, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise InputError(
            f"{path}:{reader.line_num}: {error}; write it as CSV with commas and quotation marks"
        ) from None


def _header(path: Path, line: int, names: list[str]) -> list[str]:
    """The names of the columns, each once, the video's among them."""
    _check_names(path, line, "column", names)
    if "video" not in names:
        raise InputError(f"{path}:{line}: there is no column 'video'; the first line names the columns")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"{path}:{line}: the column '{twice}' stands there twice; name each once")
    return names


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON: {error}; each line is an object of its own") from None
        if not isinstance(row, dict):
            raise InputError(f'{path}:{number}: {line.strip()[:40]} is not an object; write {{"video": ...}}')
        _check_names(path, number, "key", row)
        yield number, row


def _check_names(path: Path, line: int, what: str, names: Any) -> None:
    unknown = next((name for name in names if name not in COLUMNS), None)
    if unknown is not None:
        raise InputError(f"{path}:{line}: unknown {what} {unknown!r}{nearest(unknown, COLUMNS)}")


def _entry(path: Path, line: int, row: dict[str, Any], prompt: str) -> Entry:
    """The clip of a row; an empty value is none."""
    values = {}
    for name in COLUMNS:
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{path}:{line}: {name} is {value!r}; give a text")
        values[name] = (value or "").strip()
    if not values["video"]:
        raise InputError(f"{path}:{line}: no video is named; every clip needs one")
    audio = path.parent / values["audio"] if values["audio"] else None
    own_prompt = " ".join(values["prompt"].split())
    return Entry(path.parent / values["video"], audio, own_prompt or prompt, f"{path}:{line}")
