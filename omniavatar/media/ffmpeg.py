"""Runs the ffmpeg binary that imageio-ffmpeg brings along; there is no ffprobe and never a shell.

Files are named by `file:` URLs of absolute paths, so that no name can be taken for an option (`-x.mp3`) or for a
protocol (`concat:a|b`). Each process gets its own session, and signals of the terminal blocked until it has it: Ctrl-C
reaches Python alone, which decides what becomes of the output.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from omniavatar.errors import InputError, OmniError
from omniavatar.media.paths import input_file, shown

_CHUNK = 1 << 20
_LISTS = {b"ffconcat ": "ffconcat", b"#EXTM3U": "m3u8"}
"""How lists of other media files begin."""
_REPORTED = re.compile(r"^  (Duration|Program|Stream #0:\d+)", re.MULTILINE)
_PREFIX = re.compile(r"^(\[[^\]]*\] )+")
_SHORTAGES = frozenset((errno.E2BIG, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC))
_AFTERMATH = (
    "Conversion failed",
    "Decode error rate",
    "Error closing file",
    "Error opening input file",
    "Error opening output file",
    "Error parsing options",
    "Last message repeated",
    "Nothing was written",
    "Task finished with error code",
    "Terminating thread",
    "Could not open encoder before EOF",
)


class FfmpegError(OmniError):
    """ffmpeg could not be started or failed; the message is its own last word on the matter."""


def url(path: str | os.PathLike[str]) -> str:
    """The one way a path is handed to ffmpeg."""
    return f"file:{os.path.abspath(path)}"


def source(path: str | os.PathLike[str]) -> list[str]:
    """The arguments that open `path` as an input; playlists in it reach no network."""
    return ["-protocol_whitelist", "file", "-i", url(path)]


def last_words(log: str) -> str:
    """The last line of ffmpeg's log that says what went wrong, without the address of the component that said it."""
    lines = [_PREFIX.sub("", line.strip()) for line in log.splitlines()]
    telling = [line for line in lines if line and not line.startswith(_AFTERMATH)]
    return (telling or [line for line in lines if line] or ["ffmpeg gave no reason"])[-1]


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Let processes that are started within have the signals blocked by which a terminal or a manager ends a group.

    Until a new process has its own session it belongs to the group of its parent.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Ffmpeg:
    """One ffmpeg process. Leaving its `with` block kills it if it still runs.

    `feed` opens its standard input as a pipe; otherwise it reads nothing.
    """

    def __init__(self, arguments: Sequence[str], *, feed: bool = False) -> None:
        from imageio_ffmpeg import get_ffmpeg_exe  # here, so that what needs no media runs without it

        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill(); a file cannot fill up as a pipe would
        try:
            with signals_blocked():
                self._process = subprocess.Popen(
                    [get_ffmpeg_exe(), "-hide_banner", "-nostdin", *arguments],
                    stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    start_new_session=True,
                )
        except (OSError, RuntimeError) as error:  # RuntimeError: imageio-ffmpeg finds no binary
            self._log.close()
            short_of = isinstance(error, OSError) and error.errno in _SHORTAGES
            advice = "" if short_of else "; reinstall imageio-ffmpeg"
            raise FfmpegError(f"ffmpeg cannot be started: {error}{advice}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def read(self, count: int | None = None) -> bytearray:
        """The next `count` bytes that it writes to its standard output, or all; fewer only where it ends."""
        output = bytearray()
        while chunk := self.stdout.read(_CHUNK if count is None else min(_CHUNK, count - len(output))):
            output += chunk
        return output

    def finish(self) -> None:
        """Close its input and wait until it ends; raise `FfmpegError` if it failed."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        if (code := self._process.wait()) != 0:
            raise FfmpegError(last_words(self.log()) if code > 0 else f"ffmpeg was ended by {_signal_name(-code)}")

    def log(self) -> str:
        """What it has written to its standard error so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def stop(self) -> None:
        """End it at once, if it still runs; other threads that read or write find its pipes at their end."""
        self._process.kill()

    def kill(self) -> None:
        """End it at once, if it still runs, and close what connects to it; may be called again."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def run(arguments: Sequence[str]) -> bytearray:
    """Run ffmpeg to its end and return what it wrote to standard output; raises `FfmpegError`."""
    with Ffmpeg(["-v", "error", *arguments]) as process:
        output = process.read()
        process.finish()
    return output


def describe(path: str | os.PathLike[str], what: str) -> str:
    """ffmpeg's description of a media file: a `Duration:` line and a `Stream #0:n` line for each stream.

    Raises InputError for what is no media file, a list of others, or named so that the description would be wrong.
    """
    file_path = input_file(path, what)
    _check_no_list(file_path, what)
    with Ffmpeg(source(file_path)) as process:
        process.read()
        with contextlib.suppress(FfmpegError):  # it always asks for an output file
            process.finish()
        log = process.log()
    if "\nInput #0" not in f"\n{log}":
        raise InputError(f"{what} {shown(path)} is not a media file that ffmpeg can read: {last_words(log)}")
    _check_report(log, f"{what} {shown(path)}")
    return log


def count_packets(path: str | os.PathLike[str], stream: str = "0:V:0") -> int:
    """Packets of a stream, which are its pictures; counted without decoding, as far as the file can be read.

    Raises FfmpegError if nothing of it can be.
    """
    list_packets = ["-map", stream, "-c", "copy", "-f", "framecrc", "-"]  # ffmpeg 7.0 counts copies nowhere else
    return len(re.findall(rb"^\d", run([*source(path), *list_packets]), re.MULTILINE))


def duration_in(description: str) -> float | None:
    """Seconds according to the container (to 10 ms, estimated for some formats), or None where it does not say."""
    match = re.search(r"^  Duration: (\d+):(\d\d):(\d\d\.\d+)", description, re.MULTILINE)
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _check_no_list(path: Path, what: str) -> None:
    """Refuse lists of files, which may name themselves, or more files than anybody has."""
    with open(path, "rb") as file:
        head = file.read(16)
    for beginning, kind in _LISTS.items():
        if head.startswith(beginning):
            raise InputError(f"{what} {shown(path)} is a list of other files ({kind}); join them to one file")


def _check_report(log: str, name: str) -> None:
    """Refuse a description with lines that a file's name or its metadata have put there.

    The duration comes first, then every stream once, or again where there are programs, as in broadcasts.
    """
    lines = _REPORTED.findall(log)
    streams = [line for line in lines if line.startswith("Stream")]
    again = len(streams) != len(set(streams)) and "Program" not in lines
    if lines[:1] != ["Duration"] or lines.count("Duration") != 1 or again:
        raise InputError(f"{name} has a name or metadata that look like ffmpeg's output; rename or convert it")
