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
from typing import Any, Self

import numpy as np

from omniavatar.errors import InputError, OutputError
from omniavatar.media import ffmpeg
from omniavatar.media.audio import AudioInfo, mean_of_channels, probe_audio
from omniavatar.media.clip import Clip, video_input
from omniavatar.media.feed import FedFfmpeg
from omniavatar.media.image import cover
from omniavatar.media.looks import Looks, looks_in
from omniavatar.media.packets import Moments, list_packets, moments_in
from omniavatar.media.paths import shown

_WORKSPACE_PREFIX = ".omniavatar-"
_TO_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp,format=yuv420p,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)
_AAC_RATES = frozenset((7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000))
_AAC_CHANNELS = 8

_AUDIO_STREAM = re.compile(r"^  Stream #0:\d+.*?: Audio: ", re.MULTILINE)


@dataclass(frozen=True)
class Soundtrack:
    """The sound of the file `path`, at its own quality, behind `delay_seconds` of silence.

    The original starts it one frame late, since frame 0 is the portrait: delay = 1 / fps + silence.
    """

    path: str | os.PathLike[str]
    delay_seconds: float = 0.0


@dataclass(frozen=True)
class VideoInfo:
    """The first video track of a file, as it is displayed (after any rotation, with square pixels).

    fps: the nominal rate. frames: the stored pictures, None if they cannot be counted. duration: the container's figure
    in seconds. shown: seconds from the first picture's beginning to the last one's end, None if not known.
    """

    looks: Looks
    frames: int | None
    duration: float | None
    has_audio: bool
    shown: Fraction | None = None

    @property
    def width(self) -> int:
        return self.looks.width

    @property
    def height(self) -> int:
        return self.looks.height

    @property
    def fps(self) -> float:
        return self.looks.fps

    @property
    def is_still(self) -> bool:
        """Whether it is one picture."""
        return self.frames == 1

    def frames_at(self, fps: float) -> int | None:
        """Frames at a constant rate; None for a still, which has no length, or where they cannot be counted."""
        if self.is_still:
            return None
        seconds = self.duration if self.shown is None else self.shown
        return None if seconds is None else max(1, int(seconds * Fraction(fps) + Fraction(1, 2)))


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


def probe_video(source: Any) -> VideoInfo:
    """Look at a video, a file's first video track; lists its pictures without decoding them.

    source: a path, the bytes of a file, `(frames, fps)` or a `Clip`; see `clip.video_input`.
    Raises InputError if there is no video that can be read.
    """
    source = video_input(source)
    if isinstance(source, Clip):
        count, height, width = source.frames.shape[:3]
        looks = Looks(width, height, round(float(source.fps), 2))
        return VideoInfo(looks, count, float(source.duration), has_audio=False, shown=source.duration)
    description = ffmpeg.describe(source, "video")
    looks = looks_in(description, f"video {shown(source)}")
    moments = _moments(source)
    return VideoInfo(
        looks=looks,
        frames=moments.count if moments else None,
        duration=ffmpeg.duration_in(description),
        has_audio=_AUDIO_STREAM.search(description) is not None,
        shown=_shown_seconds(moments, looks.fps) if moments else None,
    )


def read_video(
    source: Any,
    *,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    start: int = 0,
    max_frames: int | None = None,
) -> np.ndarray:
    """A video, of a file the first video track: (t, height, width, 3) uint8, RGB, upright, in BT.709 or sRGB.

    source: as for `probe_video`.
    `fps` repeats or drops frames to a constant rate; None takes them as they are stored. `size` = (height, width)
    scales until it is covered and crops the centre, as `fit_image` does. `start` leaves out that many frames (of the
    constant rate) in front, all of them if the video is shorter; `max_frames` limits the memory that the rest takes.
    """
    source = video_input(source)
    looks = looks_of(source)
    size = size or (looks.height, looks.width)
    arguments = decoding(looks, fps=fps, size=size, start=start, max_frames=max_frames, name=name_of(source))
    try:
        with decoder(source, arguments) as process:
            frames = np.frombuffer(process.read(), dtype=np.uint8)
            process.finish()
    except ffmpeg.FfmpegError as error:
        raise InputError(f"{name_of(source)} cannot be decoded: {error}") from None
    if frames.size == 0 and start == 0:
        raise InputError(f"{name_of(source)} holds no frames")
    return frames.reshape(-1, size[0], size[1], 3)


def looks_of(source: Path | Clip) -> Looks:
    """How a video's pictures are to be shown. Raises InputError if there are none."""
    if isinstance(source, Clip):
        return probe_video(source).looks
    return looks_in(ffmpeg.describe(source, "video"), f"video {shown(source)}")


def decoder(source: Path | Clip, arguments: list[str]) -> ffmpeg.Ffmpeg:
    """ffmpeg at work on a video with the arguments that `decoding` gives. Raises FfmpegError if it cannot start."""
    if isinstance(source, Path):
        return ffmpeg.Ffmpeg(["-v", "error", *ffmpeg.source(source), *arguments])
    size = f"{source.frames.shape[2]}x{source.frames.shape[1]}"
    form = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(source.fps), "-i", "pipe:0"]
    return FedFfmpeg(["-v", "error", *form, *arguments], iter(source.frames))


def decoding(
    looks: Looks,
    *,
    fps: float | None,
    size: tuple[int, int],
    start: int = 0,
    max_frames: int | None = None,
    name: str = "the video",
) -> list[str]:
    """ffmpeg's arguments for writing frames to its standard output, as `read_video` reads them; `name` for warnings."""
    height, width = cover(looks.height, looks.width, size)
    filters = looks.whole_frames
    filters += [f"fps={Fraction(fps).limit_denominator(1001)}"] if fps else []
    filters += [f"trim=start_frame={start}"] if start else []
    filters += [f"scale={width}:{height}:flags=bicubic+accurate_rnd+full_chroma_int", *looks.usual_colours(name)]
    filters += ["format=rgb24", f"crop={size[1]}:{size[0]}"]
    limit = ["-frames:v", str(max_frames)] if max_frames is not None else []
    return ["-map", "0:V:0", "-vf", ",".join(filters), "-fps_mode", "passthrough", *limit, "-f", "rawvideo", "pipe:1"]


def name_of(source: Path | Clip) -> str:
    """What errors call a video."""
    return f"video {shown(source)}" if isinstance(source, Path) else f"video of {len(source.frames)} frames in memory"


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


def _moments(path: Path) -> Moments | None:
    try:
        return moments_in(list_packets(path, [], ["-map", "0:V:0", "-c", "copy"])).get(0)
    except ffmpeg.FfmpegError:
        return None


def _shown_seconds(moments: Moments, fps: float) -> Fraction:
    """From the first picture to the end of the last, which lasts as long as the rate says if nothing else is known."""
    end = moments.end if moments.end > moments.last or not fps else moments.last + 1 / Fraction(fps)
    return end - moments.first
