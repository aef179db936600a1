"""Video in: any clip's frames."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from omniavatar.errors import InputError
from omniavatar.lazy import np
from omniavatar.media import ffmpeg
from omniavatar.media.clip import Clip, video_input
from omniavatar.media.feed import FedFfmpeg
from omniavatar.media.image import cover
from omniavatar.media.looks import Looks, looks_in
from omniavatar.media.packets import Moments, list_packets, moments_in
from omniavatar.media.paths import shown

_AUDIO_STREAM = re.compile(r"^  Stream #0:\d+.*?: Audio: ", re.MULTILINE)


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


def _moments(path: Path) -> Moments | None:
    try:
        return moments_in(list_packets(path, [], ["-map", "0:V:0", "-c", "copy"])).get(0)
    except ffmpeg.FfmpegError:
        return None


def _shown_seconds(moments: Moments, fps: float) -> Fraction:
    """From the first picture to the end of the last, which lasts as long as the rate says if nothing else is known."""
    end = moments.end if moments.end > moments.last or not fps else moments.last + 1 / Fraction(fps)
    return end - moments.first
