"""Lists of training clips: a folder, a CSV or JSONL file of videos, their sounds and their prompts."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

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
SYNONYMS = {
    **dict.fromkeys(("caption", "captions", "text", "description"), "prompt"),
    **dict.fromkeys(("file_name", "filename", "file", "path", "video_path", "video_file"), "video"),
    **dict.fromkeys(("audio_path", "audio_file", "sound", "voice"), "audio"),
}
"""What other programs call these columns."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A clip to train on. audio: the file of its sound, None for the video's own. place: where the list names it.

    fault: what makes it unusable before its files are looked at, in a line.
    """

    video: Path
    audio: Path | None
    prompt: str
    place: str
    fault: str | None = None

    @property
    def state(self) -> str:
        """What its files are and what is said of them; other words when one of them changes."""
        stamps = [stamp(path) for path in (self.video, self.audio) if path is not None]
        return digest([*stamps, self.prompt, self.fault])


def stamp(path: Path) -> str:
    """Size in bytes and time of the last change of a file; "none" if it is not there."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return "none"
    return f"{status.st_size} {status.st_mtime_ns}"


def digest(values: Any) -> str:
    """A short name for JSON values."""
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()


def identity(entries: Sequence[Entry], path: Path) -> dict[str, Any]:
    """What the clips of a folder or list are, wherever it lies: their number, files and prompts, as JSON values."""
    root = path if path.is_dir() else path.parent
    files, prompts = [], []
    for entry in entries:
        own = [] if entry.fault else [path for path in (entry.video, entry.audio) if path is not None]
        files.append([(os.path.relpath(path, root), stamp(path)) for path in own])
        prompts.append(None if entry.fault else entry.prompt)
    return {"count": len(entries), "files": digest(files), "prompts": digest(prompts)}


def read_entries(path: Path, prompt: str = DEFAULT_PROMPT) -> list[Entry]:
    """The clips that a folder holds or a list names, in its order; `prompt` goes to those without one of their own.

    A folder gives every video in it and below it, hidden ones left out and links followed, in alphabetical order;
    `NAME.txt` beside a video is its prompt and `NAME.wav` (or .mp3, .flac, .m4a) its sound. A `.csv` file has a header
    with the column video and, if wanted, audio and prompt; a `.jsonl` file has an object with these keys on each line.
    What other programs call them is understood (`SYNONYMS`), other columns and keys are named in a warning and passed
    over, and the prompt of a row without one is in `NAME.txt` too. Relative paths start at the list's folder, `~` at
    the user's. Whether videos and sounds exist shows when they are opened. A row or a prompt that cannot be read is
    the `fault` of its clip.
    Raises InputError for a folder or a list that cannot be read, with the line.
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
        rows = list(reader(path, text))
        warn_of_others(path, (name for _, row in rows if isinstance(row, dict) for name in row))
        entries = [_entry(path, line, row, prompt) for line, row in rows]
        empty = f"the list {shown(path)} names no clip; add lines with at least a video"
    if not entries:
        raise InputError(empty)
    return entries


def _in_folder(folder: Path, prompt: str) -> Iterator[Entry]:
    seen: set[str] = set()  # folders that links lead to in circles, or twice
    for parent, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(parent, name)) not in seen]
        present = {(Path(name).stem, Path(name).suffix.lower()): Path(parent, name) for name in sorted(names)}
        for name in sorted(names):
            video = Path(parent, name)
            if video.suffix.lower() not in VIDEO_SUFFIXES or name.startswith("."):
                continue
            text, fault = _written(present.get((video.stem, ".txt")))
            sounds = (present.get((video.stem, suffix)) for suffix in SOUND_SUFFIXES)
            yield Entry(video, next(filter(None, sounds), None), text or prompt, shown(video), fault)


def _unreadable(error: OSError) -> NoReturn:
    raise InputError(f"cannot read the folder {shown(error.filename)}: {error.strerror}")


def _written(path: Path | None) -> tuple[str, str | None]:
    """The prompt in a file, and what is wrong with it; no file is no prompt."""
    try:
        return (" ".join(_text(path, "the prompt").split()) if path else ""), None
    except InputError as error:
        return "", str(error)


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read {what} {shown(path)}: {reason}") from None


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows by the header's names, or what is wrong with them, with the line in which each begins."""
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
                yield (
                    here,
                    f"{len(cells)} values for {len(header)} columns; "
                    "put quotation marks around a value that holds commas",
                )
            else:
                yield here, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise InputError(
            f"{path}:{reader.line_num}: {error}; write it as CSV with commas and quotation marks"
        ) from None


def _header(path: Path, line: int, names: list[str]) -> list[str]:
    """The names of the columns, ours for other programs', each once, the video's among them."""
    fault = _misspelt("column", names) or _twice("column", names)
    if fault:
        raise InputError(f"{path}:{line}: {fault}")
    ours = _ours(names)
    if "video" not in ours:
        raise InputError(
            f"{path}:{line}: there is no column 'video'; the first line names the columns, with commas between them"
        )
    return ours


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}; each line is an object of its own"
            continue
        if isinstance(row, dict):
            fault = _misspelt("key", row) or _twice("key", row)
            yield number, fault or dict(zip(_ours(row), row.values(), strict=True))
        else:
            yield number, f'{line.strip()[:40]} is not an object; write {{"video": ...}}'


def _ours(names: Iterable[str]) -> list[str]:
    """Our names of columns; where ours is there too, what other programs call it stays another column."""
    names = list(names)
    meant = (SYNONYMS.get(name.lower(), name) for name in names)
    return [name if own in names else own for name, own in zip(names, meant, strict=True)]


def _twice(what: str, names: Iterable[str]) -> str | None:
    """What to say of a column or key that is there twice, under one name or two."""
    names = list(names)
    for column in COLUMNS:
        same = [name for name, own in zip(names, _ours(names), strict=True) if own == column]
        if len(same) > 1:
            both = f", as {' and '.join(map(repr, same))}" if len(set(same)) > 1 else ""
            return f"the {what} '{column}' stands there twice{both}; name each once"
    return None


def warn_of_others(path: Path, names: Iterable[str]) -> None:
    """Name the columns and keys that are not used."""
    others = [name for name in dict.fromkeys(names) if name and name not in COLUMNS]
    if others:
        log.warning("%s: not used: %s; used are %s", path, ", ".join(others), ", ".join(COLUMNS))


def _misspelt(what: str, names: Iterable[str]) -> str | None:
    """What to say of a name that was meant to be one of `COLUMNS`; names of something else are fine."""
    for name in names:
        is_known = name in COLUMNS or name.lower() in SYNONYMS
        if not is_known and difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.7):
            return f"unknown {what} {name!r}{nearest(name.lower(), COLUMNS)}"
    return None


def _entry(path: Path, line: int, row: dict[str, Any] | str, prompt: str) -> Entry:
    """The clip of a row; an empty value is none."""
    fault = row if isinstance(row, str) else _fault(row)
    if fault is not None or isinstance(row, str):
        return Entry(path, None, prompt, f"{path}:{line}", fault)
    video, audio, own_prompt = ((row.get(name) or "").strip() for name in COLUMNS)
    place = path.parent / os.path.expanduser(video)
    beside = place.with_suffix(".txt")
    text, fault = " ".join(own_prompt.split()), None
    if not text and beside.is_file():
        text, fault = _written(beside)
    return Entry(
        video=place,
        audio=path.parent / os.path.expanduser(audio) if audio else None,
        prompt=text or prompt,
        place=f"{path}:{line}",
        fault=fault,
    )


def _fault(row: dict[str, Any]) -> str | None:
    """What is wrong with the values of a row."""
    for name in COLUMNS:
        if not isinstance(row.get(name), str | None):
            return f"{name} is {row[name]!r}; give a text"
    return None if (row.get("video") or "").strip() else "no video is named; every clip needs one"
