"""`omni run --again`: the last command once more, or the one that is recorded in a video.

The words of each `omni run` are kept in the user's folder, and written into the videos that it makes (unless
`write-video.metadata` is off), with the seed that was drawn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from omniavatar.cli.console import say
from omniavatar.errors import InputError

OPTION = "--again"
OF_ONE_VIDEO = ("--input-file", "--output", "-o")
"""Options that a single video of a list does not repeat."""
OF_SIZE = ("--size", "--width", "--height")


def last_file() -> Path:
    """Where the last command is kept."""
    return Path(click.get_app_dir("omniavatar")) / "last-run.json"


def remember(arguments: Sequence[str]) -> None:
    """Keep the words of a command, and the folder in which they hold; if that is impossible, no harm is done."""
    path = last_file()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"folder": str(Path.cwd()), "command": list(arguments)}), encoding="utf-8")


def expanded(arguments: Sequence[str]) -> list[str]:
    """The words of a command in which `--again` stands for what was recorded; later words are stronger.

    Raises InputError if nothing is recorded, or not in the file that is named.
    """
    given = list(arguments)
    for index, word in enumerate(given):
        if word == OPTION or word.startswith(f"{OPTION}="):
            value = word.partition("=")[2]
            rest = given[index + 1 :]
            if not value and word == OPTION and rest and not rest[0].startswith("-"):
                value, rest = rest[0], rest[1:]
            return [*(of_video(value) if value else of_last()), *given[:index], *rest]
    return given


def of_last() -> list[str]:
    """The words of the last command; its folder becomes the current one."""
    try:
        record = json.loads(last_file().read_text(encoding="utf-8"))
        folder, command = record["folder"], words(record["command"])
    except FileNotFoundError:
        raise InputError(f"{OPTION}: no command has been run yet; name a video with {OPTION} FILE") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{OPTION}: the record of the last command, {last_file()}, cannot be read") from None
    if folder != str(Path.cwd()):
        say(f"in {folder}: omni run {' '.join(command)}")
        try:
            os.chdir(folder)
        except OSError as error:
            raise InputError(f"{OPTION}: the folder of the last command, {folder}: {error.strerror}") from None
    return command


def of_video(path: str) -> list[str]:
    """The words of the command that made a video, with its seed and, of a list, the inputs of this one alone."""
    from omniavatar.media.writer import read_metadata

    try:
        record = json.loads(read_metadata(Path(path).expanduser()).get("comment", ""))
        command, seed, inputs = words(record["command"]), int(record["seed"]), dict(record["inputs"])
        size = record.get("size")
        if size is not None:  # a file of an earlier version may have --size the other way round
            height, width = map(int, size)
            command = [*without(command, OF_SIZE), f"--width={width}", f"--height={height}"]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{OPTION}: {path} does not say which command made it; videos of omni run do, unless "
            "--write-video.metadata was false"
        ) from None
    if any(word.partition("=")[0] == OF_ONE_VIDEO[0] for word in command):
        command = [*without(command, OF_ONE_VIDEO), *options_of(inputs)]
    return [*command, f"--seed={seed}"]


def words(command: Any) -> list[str]:
    """A recorded command. Raises TypeError if it is none."""
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise TypeError("a command is a list of words")
    return command


def without(command: Sequence[str], options: Sequence[str]) -> list[str]:
    """A command without some options that take a value."""
    kept, skips = [], False
    for word in command:
        if skips:
            skips = False
        elif word in options:
            skips = True
        elif word.partition("=")[0] not in options:
            kept.append(word)
    return kept


def options_of(inputs: dict[str, Any]) -> list[str]:
    """Inputs as options."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in inputs.items() if value is not None]
