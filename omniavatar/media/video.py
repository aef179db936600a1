"""Video in: any clip's frames."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from omniavatar.errors import InputError
from omniavatar.media import ffmpeg
from omniavatar.media.paths import input_file, shown
from omniavatar.media.writer import Soundtrack, VideoWriter, check_output  # noqa: F401 - they used to be here

_VIDEO_STREAM = re.compile(r"^ +Stream #0:\d+.*?: Video: (?!.*\(attached pic\)).*$", re.MULTILINE)
_PICTURE_SIZE = re.compile(r", (\d+)x(\d+)[ ,\n]")
_RATE = re.compile(r", ([\d.]+)(k?) (?:fps|tbr)")
_QUARTER_TURN = re.compile(r"display ?matrix: rotation of -?(?:90|270)\.", re.IGNORECASE)


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


def _count_frames(path: str | os.PathLike[str]) -> int | None:
    list_packets = ["-map", "0:V:0", "-c", "copy", "-f", "framecrc", "-"]  # ffmpeg 7.0 counts copies nowhere else
    try:
        packets = re.findall(rb"^\d", ffmpeg.run([*ffmpeg.source(path), *list_packets]), re.MULTILINE)
    except ffmpeg.FfmpegError:
        return None
    return len(packets) or None
