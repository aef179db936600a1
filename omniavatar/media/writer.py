"""Video out: frames stream into an H.264 + AAC mp4, which appears by one rename; finished frames are never deleted.

with VideoWriter("talk.mp4", width=720, height=400, fps=25, soundtrack=Soundtrack("me.mp3", 0.04)) as writer:
    for chunk in chunks:
        writer.write(chunk)
        writer.flush()
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from omniavatar.errors import OutputError
from omniavatar.lazy import np
from omniavatar.media import ffmpeg
from omniavatar.media.encoder import Encoder, Format
from omniavatar.media.ffmpeg import FfmpegError
from omniavatar.media.metadata import METADATA_KEYS, check_metadata, read_metadata
from omniavatar.media.paths import of_user, shown
from omniavatar.media.preview import Preview
from omniavatar.media.soundtrack import AAC, Soundtrack, encode_soundtrack
from omniavatar.media.workspace import Workspace, sibling_name

__all__ = [
    "METADATA_KEYS",
    "Soundtrack",
    "VideoWriter",
    "check_output",
    "read_metadata",
    "signals_deferred",
]

_CLOSE_ENOUGH = 0.02  # seconds; ffmpeg tells lengths to 0.01


def check_output(path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
    """Make sure, before any work is done, that a video can be written to `path`; returns it resolved.

    Missing folders are fine: they are made when writing starts. Leaves nothing behind. Raises OutputError.
    """
    path = of_user(path, "output")
    try:
        target = Path(os.path.realpath(path))
        _check_target(target, path, overwrite)
        folder = next(folder for folder in target.parents if os.path.lexists(folder))
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise OutputError(f"cannot write {shown(path)}: {_reason(error)}; choose another place") from None
    return target


def _check_target(target: Path, path: str | os.PathLike[str], overwrite: bool) -> None:
    if target.suffix.lower() != ".mp4":
        raise OutputError(f"cannot write {shown(path)}: the output is an mp4 file; give a name that ends in .mp4")
    with contextlib.suppress(FileNotFoundError):
        os.lstat(target)  # raises if the name is too long or lies below a file
        if not target.is_file():
            raise OutputError(f"cannot write {shown(path)}: it exists and is not a file; give another name")
        if not overwrite:
            raise OutputError(f"cannot write {shown(path)}: it exists; allow overwriting or give another name")


class VideoWriter:
    """Writes one video in constant memory: frames are encoded in a thread of its own while the caller goes on.

    What only the end needs is tried here, before the first frame: the target, ffmpeg and its encoder, and the sound,
    which is encoded now and may vanish afterwards. Until `close` all lies in a hidden folder beside the target; its
    name.partial.mp4 plays to the end of the last chunk that was flushed, even if Python and ffmpeg are killed.

    duration: seconds that the video will have; the sound is cut or filled with silence to it. Without it a sound that
    turns out shorter than the pictures is encoded a second time at the end.
    crf: H.264's quality, 1 (best) to 51; 0 is stored as 1, since lossless H.264 plays hardly anywhere.
    preview: a growing name.preview.mp4 beside the target, with the sound, as long as the work goes on.
    metadata: texts for the keys of METADATA_KEYS.

    As a context manager it publishes the video at the end; an exception in the block, Ctrl-C included, calls `keep` and
    carries its line as a note. `waited` counts the seconds for which `write` and `flush` held their callers up.

    Raises OutputError if the video cannot be written, InputError if the sound cannot be used.
    """

    def __init__(  # noqa: PLR0913 - what a video is takes as many words
        self,
        path: str | os.PathLike[str],
        *,
        width: int,
        height: int,
        fps: float,
        soundtrack: Soundtrack | None = None,
        duration: float | None = None,
        crf: int = 18,
        preview: bool = False,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = True,
    ) -> None:
        check_metadata(metadata or {})
        self.path = check_output(path, overwrite=overwrite)
        self.width, self.height, self.fps = width, height, Fraction(fps).limit_denominator(1001)
        self.frames_written = 0
        self._overwrite = overwrite
        self._preview: Preview | None = None
        self._open = True
        with self._told():
            self._workspace = Workspace(self.path)
        try:
            with self._told():
                self._sound_seconds = encode_soundtrack(soundtrack, self._sound, duration) if soundtrack else None
                if preview:
                    self._preview = Preview(self.path, self._sound if soundtrack else None)
                form = Format(width, height, self.fps, crf, dict(metadata or {}))
                follow = self._preview.follow if self._preview else None
                self._encoder = Encoder(self._pictures, form, follow=follow)
        except BaseException:
            self._tidy()
            raise

    @property
    def duration(self) -> float:
        """Seconds of video given so far."""
        return float(self.frames_written / self.fps)

    @property
    def preview(self) -> Path | None:
        """The file that can be looked at meanwhile: name.preview.mp4, with a number if that name was taken."""
        return self._preview.path if self._preview else None

    @property
    def waited(self) -> float:
        """Seconds for which callers were held up."""
        return self._encoder.waited

    def write(self, frames: np.ndarray) -> None:
        """Append frames (t, height, width, 3) uint8, RGB. They are not copied: leave the array as it is afterwards.

        Returns at once, unless a few groups wait already. Raises OutputError, with ffmpeg's reason, once frames could
        not be encoded or stored; those before are still there for `keep`.
        """
        if frames.dtype != np.uint8 or frames.shape[1:] != (self.height, self.width, 3):
            expected = f"(t, {self.height}, {self.width}, 3) uint8"
            raise ValueError(f"frames are {frames.shape} {frames.dtype}, the video takes {expected}")
        self._expect_open()
        if len(frames) > 0:
            with self._told():
                self._encoder.put(frames)
        self.frames_written += len(frames)

    def flush(self, *, wait: bool = True) -> None:
        """End a chunk, after which a frame stands that needs no earlier one; it costs some bytes, so flush seldom.

        When it returns, the frames so far are on the disk: they play even if all processes are killed or the power
        goes. With wait=False it returns at once and they get there while the caller goes on, which is what a device
        that computes the next chunk wants. Raises OutputError as `write` does.
        """
        self._expect_open()
        with self._told():
            self._encoder.flush(wait=wait)

    def close(self) -> Path:
        """Put pictures and sound together, publish the video by one rename and return where it is; again: nothing.

        That is `path`, or the same name where its folder was moved meanwhile. If it fails, the finished frames are kept
        as name.partial.mp4, with the sound if possible, and the OutputError says where.
        """
        if not self._open:
            return self.path
        if self.frames_written == 0:
            self.abort()
            raise OutputError(f"cannot write {shown(self.path)}: no frames were given")
        whole, is_encoded = None, False
        try:
            self._encoder.finish()
            is_encoded = True
            whole = self._mux(self._encoder.frames)
            with signals_deferred():
                self.path = self._workspace.publish(whole, overwrite=self._overwrite)
                self._end()
        except (FfmpegError, OSError) as error:
            kept = self._keep(whole, try_mux=not is_encoded)
            raise OutputError(f"cannot write {shown(self.path)}: {_reason(error)}; {kept}".removesuffix("; ")) from None
        return self.path

    def keep(self) -> str:
        """Keep what there is of a video that stops early, as name.partial.mp4, and return a line that says where.

        Never fails and never overwrites. The sound is left out if it cannot be put in, and what cannot be renamed stays
        in the hidden folder. A signal waits meanwhile; what it then raises has the line as a note. The line is empty if
        there are no frames, or nothing is left to say.
        """
        return self._keep(None, try_mux=True) if self._open else ""

    def abort(self) -> None:
        """Stop, and remove everything that was not published: for a video that nobody wants any more."""
        if self._open:
            self._encoder.kill()
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        except BaseException as failure:
            error = failure
            raise
        finally:
            if error is not None and (line := self.keep()):
                error.add_note(line)

    @property
    def _pictures(self) -> Path:
        """The growing file, named so that its finder knows what it is."""
        return self._workspace.path / sibling_name(self.path, "partial")

    @property
    def _sound(self) -> Path:
        return self._workspace.path / "sound.m4a"

    def _mux(self, frames: int) -> Path:
        """Put pictures and sound into one file of the workspace. Raises FfmpegError."""
        whole = self._workspace.path / "whole.mp4"
        sound = [] if self._sound_seconds is None else self._second_input(self._sound_seconds, float(frames / self.fps))
        output = ["-c:v", "copy", "-movflags", "+faststart", "-f", "mp4", ffmpeg.url(whole)]
        ffmpeg.run(["-y", "-i", ffmpeg.url(self._pictures), *sound, *output])
        return whole

    def _second_input(self, sound_seconds: float, seconds: float) -> list[str]:
        """The prepared sound beside the pictures, to their end; one that ends before is filled up and encoded anew."""
        streams = ["-t", f"{seconds:.6f}", "-i", ffmpeg.url(self._sound), "-map", "0:v:0", "-map", "1:a:0"]
        if sound_seconds > seconds - _CLOSE_ENOUGH:
            last_packet = f"setts=duration=min(DURATION\\,{seconds:.9f}/TB-PTS)"
            return [*streams, "-c:a", "copy", "-bsf:a", last_packet]
        return [*streams, "-af", f"apad=whole_dur={seconds:.6f}", *AAC]

    def _keep(self, whole: Path | None, *, try_mux: bool) -> str:
        """Publish the best that there is as a partial file and say where it is, undisturbed by signals.

        whole: pictures and sound together, if that is done. try_mux: whether it is worth trying.
        """
        line = ""
        try:
            with signals_deferred():
                line = self._publish_partial(whole, try_mux=try_mux)
        except BaseException as interrupt:  # of a signal that came meanwhile
            interrupt.add_note(line)
            raise
        return line

    def _publish_partial(self, whole: Path | None, *, try_mux: bool) -> str:
        try:
            count = self._count()
            if count == 0:
                self._end()
                return ""
            lacking = "" if whole or self._sound_seconds is None else ", without sound"
            if try_mux:
                try:
                    whole, lacking = self._mux(self._encoder.frames if count is None else count), ""
                except (FfmpegError, OSError) as error:
                    lacking = lacking and f"{lacking}: {_reason(error)}"
            return f"{_frames(count)} in {self._place(whole or self._pictures)}{lacking}"
        except Exception as error:  # a report that fails must not take the frames along
            self._open = False
            return f"the finished frames are left in {self._workspace.path}: {_reason(error)}"

    def _count(self) -> int | None:
        """Frames in the file of pictures; None if they cannot be counted."""
        try:
            self._encoder.finish()
        except Exception:  # this was said when a group could not be written, or will be by `close`
            if not self._encoder.fragments:
                return 0
            with contextlib.suppress(FfmpegError):
                return ffmpeg.count_packets(self._pictures)
            return None
        return self._encoder.frames

    def _place(self, file: Path) -> str:
        """Rename a file to a partial name, or leave it in the workspace if that cannot be; returns where it is."""
        try:
            place = self._workspace.publish_as("partial", file)
        except OSError as error:
            if not file.exists():
                self._end()
                return "a folder that was removed with them, so they are lost"
            os.replace(file, self._pictures)
            self._end(but=self._pictures)
            return f"{self._pictures} (cannot write to the folder above it: {_reason(error)})"
        self._end()
        return str(place)

    def _end(self, *, but: Path | None = None) -> None:
        self._open = False
        self._tidy(but=but)

    def _tidy(self, *, but: Path | None = None) -> None:
        if self._preview is not None:
            self._preview.remove(self._workspace.target.parent)
        self._workspace.remove(but=but)

    def _expect_open(self) -> None:
        if not self._open:
            raise ValueError(f"the video {shown(self.path)} is closed; open another writer for more frames")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what ffmpeg or the file system says into an OutputError."""
        try:
            yield
        except (FfmpegError, OSError) as error:
            raise OutputError(f"cannot write {shown(self.path)}: {_reason(error)}") from None


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Let no Ctrl-C, SIGTERM or SIGHUP interrupt a block that must come to its end; it takes effect behind the block.

    One that comes while the program already stops for such a signal says nothing new and is dropped. Other threads than
    the main one are not interrupted anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = isinstance(sys.exception(), KeyboardInterrupt | SystemExit)
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    candidates = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in candidates if callable(signal.getsignal(number))}
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came and not stopping:
        signal.raise_signal(came[0])


def _frames(count: int | None) -> str:
    if count == 1:
        return "the 1 finished frame is"
    return "the finished frames are" if count is None else f"the {count} finished frames are"


def _reason(error: BaseException) -> str:
    """What an error says, without numbers and paths of ours."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
