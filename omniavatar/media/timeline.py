"""Pieces of long videos: frames by their number at a constant rate, decoded from the key frame in front of them.

A file has a clock of its own, on which pictures and sound may begin at different times and come at any pace. Frame n at
`fps` is the picture that is shown n / fps seconds after the first picture (to half a frame: the nearest one).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from omniavatar.errors import InputError
from omniavatar.lazy import np
from omniavatar.media import ffmpeg
from omniavatar.media.image import placement
from omniavatar.media.looks import Looks, looks_in
from omniavatar.media.packets import Moments, list_packets, moments_in
from omniavatar.media.paths import input_file, shown

_TAIL = "-1"
_MARGIN = 0.5


@dataclass(frozen=True)
class Timeline:
    """When the first video track of a file, and its sound, take place: seconds of the file's own clock.

    looks: how its pictures are to be shown. start, last, end: when the first picture begins, and
    when the last one begins and ends. sound: when the first audio track begins, None without one. seekable: whether
    decoding can begin in the middle.
    """

    path: Path
    looks: Looks
    start: Fraction
    last: Fraction
    end: Fraction
    sound: Fraction | None
    seekable: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as displayed (after any rotation, with square pixels)."""
        return self.looks.height, self.looks.width

    def frames_at(self, fps: int) -> int:
        """How many frames there are at a constant rate, at least 1."""
        return max(1, int((self.end - self.start) * fps + Fraction(1, 2)))


def probe_timeline(path: str | os.PathLike[str], *, sound: bool = True) -> Timeline:
    """Look at the beginning and the end of a file; decodes one picture. Raises InputError if there is none.

    sound: whether to look at the sound too.
    """
    path = input_file(path, "video")
    looks = looks_in(ffmpeg.describe(path, "video"), f"video {shown(path)}")
    first = [*("-map", "0:V:0", "-vf", "trim=end_frame=1", "-fps_mode", "passthrough", "-enc_time_base:v", "demux")]
    heard = ["-map", "0:a:0?", "-af", "atrim=end_sample=1"] if sound else []
    try:
        begins = moments_in(list_packets(path, [], [*first, *heard]))
    except ffmpeg.FfmpegError as error:
        raise InputError(f"video {shown(path)} cannot be decoded: {error}") from None
    if 0 not in begins:
        raise InputError(f"video {shown(path)} holds no pictures that can be decoded; give a video file")
    seekable = _is_seekable(path)
    last = _last_picture(path, seekable)
    return Timeline(
        path=path,
        looks=looks,
        start=begins[0].first,
        last=last.last,
        end=last.end,
        sound=begins[1].first if 1 in begins else None,
        seekable=seekable,
    )


def read_frames(timeline: Timeline, start: int, count: int, *, fps: int, size: tuple[int, int]) -> np.ndarray:
    """Frames [start, start + count): (count, height, width, 3) uint8, RGB, upright.

    size: (height, width), which the pictures are scaled to cover; the centre is kept, as in `fit_image`.
    Raises InputError if they cannot all be decoded.
    """
    near = float(timeline.start) + start / fps - _MARGIN
    seek = ["-seek_timestamp", "1", "-noaccurate_seek", "-ss", f"{near:.6f}"]
    output = _frames_output(timeline, start, count, fps, size)
    reason = ""
    for options in ([seek] if timeline.seekable and near > timeline.start else []) + [[]]:
        try:
            arguments = ["-copyts", "-max_error_rate", "0", *options, *ffmpeg.source(timeline.path), *output]
            frames = np.frombuffer(_decoded(arguments), dtype=np.uint8).reshape(-1, *size, 3)
            if len(frames) == count:
                return frames
            reason = f"it breaks off at frame {start + len(frames)}"
        except ffmpeg.FfmpegError as error:
            reason = str(error)
    raise InputError(f"video {shown(timeline.path)} cannot be decoded from frame {start} on: {reason}")


def _decoded(arguments: Sequence[str]) -> bytearray:
    """What ffmpeg writes; damage that its reader passes over, leaving out pictures, is an error here."""
    with ffmpeg.Ffmpeg(["-v", "error", *arguments]) as process:
        output = process.read()
        process.finish()
        damage = re.search(r"^\[in#0.*?\] (.*)$", process.log(), re.MULTILINE)
    if damage:
        raise ffmpeg.FfmpegError(damage[1])
    return output


def _frames_output(timeline: Timeline, start: int, count: int, fps: int, size: tuple[int, int]) -> list[str]:
    """The arguments that make raw frames of the pictures; the last picture stays as long as its packet says."""
    (height, width), (top, left) = placement(*timeline.size, size)
    filters = [
        *timeline.looks.whole_frames,
        f"fps={fps}:start_time={float(timeline.start):.9f}",
        f"tpad=stop_mode=clone:stop={math.ceil((timeline.end - timeline.last) * fps)}",
        f"trim=start_frame={start}:end_frame={start + count}",
        f"scale={width}:{height}:flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp",
        *timeline.looks.usual_colours(f"video {shown(timeline.path)}"),
        "format=rgb24",
        f"crop={size[1]}:{size[0]}:{left}:{top}",
    ]
    return ["-map", "0:V:0", "-vf", ",".join(filters), "-fps_mode", "passthrough", "-f", "rawvideo", "pipe:1"]


def _last_picture(path: str | os.PathLike[str], seekable: bool) -> Moments:
    """When it begins and ends: from the end of the file, or from all of it where that cannot be found."""
    copied = ["-map", "0:V:0", "-c", "copy", "-copyinkf"]
    for options in ([["-sseof", _TAIL]] if seekable else []) + [[]]:
        try:
            moments = moments_in(list_packets(path, options, copied))
        except ffmpeg.FfmpegError:
            continue
        if moments:
            return moments[0]
    raise InputError(f"video {shown(path)} has no time stamps that can be read; convert it to mp4")


def _is_seekable(path: str | os.PathLike[str]) -> bool:
    """Whether it is MP4, QuickTime or Matroska, where seeking finds the key frame in front of a time."""
    with open(path, "rb") as file:
        head = file.read(8)
    return head[4:] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3"
