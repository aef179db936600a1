"""Video out: frames stream into an H.264 + AAC mp4 that appears whole, by one rename. Video in: any clip's frames."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from omniavatar.errors import InputError, OutputError
from omniavatar.media import ffmpeg
from omniavatar.media.audio import AudioInfo, mean_of_channels, probe_audio
from omniavatar.media.paths import input_file, shown

_WORKSPACE_PREFIX = ".omniavatar-"
_TO_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp,format=yuv420p,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)
_AAC_RATES = frozenset((7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000))
_AAC_CHANNELS = 8

_VIDEO_STREAM = re.compile(r"^ +Stream #0:\d+.*?: Video: (?!.*\(attached pic\)).*$", re.MULTILINE)
_PICTURE_SIZE = re.compile(r", (\d+)x(\d+)[ ,\n]")
_RATE = re.compile(r", ([\d.]+)(k?) (?:fps|tbr)")
_QUARTER_TURN = re.compile(r"display ?matrix: rotation of -?(?:90|270)\.", re.IGNORECASE)


@dataclass(frozen=True)
class Soundtrack:
    """The sound of the file `path`, at its own quality, behind `delay_seconds` of silence.

    The original starts it one frame late, since frame 0 is the portrait: delay = 1 / fps + silence.
    """

    path: str | os.PathLike[str]
    delay_seconds: float = 0.0


@dataclass(frozen=True)
class VideoInfo:
    """The first video track of a file, as it is displayed (after any rotation flag). Durations in seconds.

    `fps` has two decimals (23.98). `frames` counts the stored pictures, None if they cannot be counted.
    """

    width: int
    height: int
    fps: float
    frames: int | None
    duration: float | None
    has_audio: bool

    @property
    def is_still(self) -> bool:
        """Whether it is one picture."""
        return self.frames == 1

    def frames_at(self, fps: float) -> int | None:
        """Frames at another rate; None for a still, which has no length, or where they cannot be counted."""
        if self.is_still:
            return None
        if self.frames is not None:
            return max(1, round(self.frames * fps / self.fps))
        return None if self.duration is None else max(1, round(self.duration * fps))


def check_output(path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
    """Make sure, before any work is done, that a video can be written to `path`; returns it resolved.

    Missing folders are fine: they are made when writing starts. Leaves nothing behind.
    """
    try:
        target = Path(os.path.realpath(path))
        _check_target(target, path, overwrite)
        folder = next(folder for folder in target.parents if os.path.lexists(folder))
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"cannot write {shown(path)}: {reason}; choose another place") from None
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
    """Writes one video, frame by frame, in constant memory.

    Frames go to ffmpeg as they come; `close` adds the sound and publishes the file by an atomic rename, so that `path`
    is either absent (or the old file) or complete. Until then everything lies in a hidden folder beside it, as a
    fragmented mp4 that plays even if this process is killed. Odd sizes gain one row or column that repeats the edge,
    since the colour format stores blocks of 2x2 pixels.

    Use as a context manager: an exception in the block, Ctrl-C included, calls `abort`. To keep what is there instead,
    call `close(path=...)` with another name before the exception leaves the block.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int,
        height: int,
        fps: float,
        soundtrack: Soundtrack | None = None,
        crf: int = 18,
        overwrite: bool = True,
    ) -> None:
        self.path = check_output(path, overwrite=overwrite)
        self.width, self.height, self.fps = width, height, Fraction(fps).limit_denominator(1001)
        self.frames_written = 0
        self._sound = (soundtrack, probe_audio(soundtrack.path)) if soundtrack else None
        self._workspace = _workspace_beside(self.path)
        self._silent_video = Path(self._workspace.name, "video.mp4")
        self._open = True
        try:
            self._encoder = ffmpeg.Ffmpeg(self._encoder_arguments(crf), feed=True)
        except BaseException:
            self._workspace.cleanup()
            raise

    @property
    def duration(self) -> float:
        """Seconds of video written so far."""
        return float(self.frames_written / self.fps)

    def write(self, frames: np.ndarray) -> None:
        """Append frames: (t, height, width, 3) uint8, RGB."""
        if frames.dtype != np.uint8 or frames.shape[1:] != (self.height, self.width, 3):
            expected = f"(t, {self.height}, {self.width}, 3) uint8"
            raise ValueError(f"frames are {frames.shape} {frames.dtype}, the video takes {expected}")
        for frame in frames:
            even = np.pad(frame, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
            try:
                self._encoder.stdin.write(even.data)
            except BrokenPipeError:
                self._finish_encoding()
                raise OutputError(f"cannot write {shown(self.path)}: ffmpeg stopped reading frames") from None
            self.frames_written += 1

    def close(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Add the sound, publish the video as `path` (default: the writer's own) and return where it is.

        If this fails the frames are still there: `close` may be called again with another path. Once it has succeeded,
        or after `abort`, it does nothing.
        """
        if self._open:
            if path is not None:
                self.path = check_output(path)
            if self.frames_written == 0:
                raise OutputError(f"cannot write {shown(self.path)}: no frames were given")
            self._finish_encoding()
            self._publish()
            self.abort()
        return self.path

    def abort(self) -> None:
        """Stop ffmpeg and remove everything that was not published; may be called at any time."""
        self._encoder.kill()
        self._workspace.cleanup()
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abort()

    def _encoder_arguments(self, crf: int) -> list[str]:
        size = f"{self.width + self.width % 2}x{self.height + self.height % 2}"
        return [
            *("-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(self.fps), "-i", "pipe:0"),
            *("-vf", _TO_BT709, "-c:v", "libx264", "-crf", str(crf)),
            *("-movflags", "+frag_keyframe+empty_moov", "-f", "mp4", ffmpeg.url(self._silent_video)),
        ]

    def _finish_encoding(self) -> None:
        try:
            self._encoder.finish()
        except ffmpeg.FfmpegError as error:
            raise OutputError(f"cannot write {shown(self.path)}: {error}") from None

    def _publish(self) -> None:
        """Mux into a folder beside the target, which may be another one than the frames lie in, and rename."""
        with _workspace_beside(self.path) as folder:
            muxed = Path(folder, "muxed.mp4")
            sound = _sound_arguments(*self._sound, self.duration) if self._sound else []
            output = ["-c:v", "copy", "-movflags", "+faststart", "-f", "mp4", ffmpeg.url(muxed)]
            try:
                ffmpeg.run(["-i", ffmpeg.url(self._silent_video), *sound, *output])
                os.replace(muxed, self.path)
            except (ffmpeg.FfmpegError, OSError) as error:
                raise OutputError(f"cannot write {shown(self.path)}: {error}") from None


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Look at the first video track of a file; counts its frames without decoding them."""
    description = ffmpeg.describe(path, "video")
    stream = _VIDEO_STREAM.search(description)
    size, rate = (pattern.search(f"{stream[0]}\n") if stream else None for pattern in (_PICTURE_SIZE, _RATE))
    if size is None or rate is None:
        raise InputError(f"video {shown(path)} has no readable video track; give a video file")
    width, height = int(size[1]), int(size[2])
    if _QUARTER_TURN.search(description):
        width, height = height, width
    return VideoInfo(
        width=width,
        height=height,
        fps=float(rate[1]) * (1000 if rate[2] else 1),
        frames=_count_frames(path),
        duration=ffmpeg.duration_in(description),
        has_audio=": Audio: " in description,
    )


def read_video(
    path: str | os.PathLike[str],
    *,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    start: int = 0,
    max_frames: int | None = None,
) -> np.ndarray:
    """Decode the first video track: (t, height, width, 3) uint8, RGB, upright.

    `fps` repeats or drops frames to a constant rate; None takes them as they are stored. `size` = (height, width)
    scales until it is covered and crops the centre, as `fit_image` does. `start` leaves out that many frames (of the
    constant rate) in front, all of them if the video is shorter; `max_frames` limits the memory that the rest takes.
    """
    if size is None:
        info = probe_video(path)
        size = info.height, info.width
    arguments = decoding(path, fps=fps, size=size, start=start, max_frames=max_frames)
    input_file(path, "video")
    try:
        frames = np.frombuffer(ffmpeg.run(arguments), dtype=np.uint8)
    except ffmpeg.FfmpegError as error:
        raise InputError(f"video {shown(path)} cannot be decoded: {error}") from None
    if frames.size == 0 and start == 0:
        raise InputError(f"video {shown(path)} holds no frames")
    return frames.reshape(-1, size[0], size[1], 3)


def decoding(
    path: str | os.PathLike[str],
    *,
    fps: float | None,
    size: tuple[int, int],
    start: int = 0,
    max_frames: int | None = None,
) -> list[str]:
    """The arguments of `read_video` as those with which ffmpeg writes the frames to its standard output."""
    cover = f"scale={size[1]}:{size[0]}:force_original_aspect_ratio=increase:flags=bicubic+accurate_rnd+full_chroma_int"
    filters = [f"fps={Fraction(fps).limit_denominator(1001)}"] if fps else []
    filters += [f"trim=start_frame={start}"] if start else []
    filters += [cover, f"crop={size[1]}:{size[0]}", "format=rgb24"]
    limit = ["-frames:v", str(max_frames)] if max_frames is not None else []
    output = ["-map", "0:V:0", "-vf", ",".join(filters), "-fps_mode", "passthrough", *limit, "-f", "rawvideo", "pipe:1"]
    return [*ffmpeg.source(path), *output]


def _workspace_beside(target: Path) -> tempfile.TemporaryDirectory[str]:
    """A hidden folder on the target's file system, so that a file in it can be renamed onto the target."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=target.parent, prefix=_WORKSPACE_PREFIX)
    except OSError as error:
        raise OutputError(f"cannot write {shown(target)}: {error.strerror}; choose another place") from None


def _sound_arguments(soundtrack: Soundtrack, info: AudioInfo, duration: float) -> list[str]:
    """The sound as second input, encoded as AAC: delayed, then cut or filled up with silence to `duration` seconds.

    `asetpts` counts samples from the track's first one, as `load_waveform` does.
    """
    filters = [
        *([mean_of_channels(info.channels)] if info.channels > _AAC_CHANNELS else []),
        "asetpts=N/SR/TB",
        f"adelay=delays={soundtrack.delay_seconds * 1000:.3f}:all=1",
        "apad",
        f"atrim=end={duration:.9f}",
    ]
    rate = info.sample_rate if info.sample_rate in _AAC_RATES else 48000
    streams = [*ffmpeg.source(soundtrack.path), "-map", "0:v:0", "-map", "1:a:0"]
    return [*streams, "-af", ",".join(filters), "-ar", str(rate), "-c:a", "aac", "-b:a", "192k"]


def _count_frames(path: str | os.PathLike[str]) -> int | None:
    list_packets = ["-map", "0:V:0", "-c", "copy", "-f", "framecrc", "-"]  # ffmpeg 7.0 counts copies nowhere else
    try:
        packets = re.findall(rb"^\d", ffmpeg.run([*ffmpeg.source(path), *list_packets]), re.MULTILINE)
    except ffmpeg.FfmpegError:
        return None
    return len(packets) or None
