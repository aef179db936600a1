"""Pieces of long videos: frames by their number at a constant rate, decoded from the key frame in front of them.

A file has a clock of its own, on which pictures and sound may begin at different times and come at any pace. Frame n at
`fps` is the picture that is shown n / fps seconds after the first picture (to half a frame: the nearest one).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from omniavatar.errors import InputError
from omniavatar.media import ffmpeg
from omniavatar.media.image import placement
from omniavatar.media.paths import input_file, shown

_TIME_BASE = re.compile(r"^#tb (\d+): (\d+/\d+)$", re.MULTILINE)
_SIZE = re.compile(r"^#dimensions 0: (\d+)x(\d+)$", re.MULTILINE)
_PACKET = re.compile(r"^(\d+), +(-?\d+), +(-?\d+), +(\d+),", re.MULTILINE)
_NO_TIME = -(2**63)
_TAIL = "-1"
_MARGIN = 0.5


@dataclass(frozen=True)
class Timeline:
    """When the first video track of a file, and its sound, take place: seconds of the file's own clock.

    size: height and width as displayed (after any rotation flag). start, last, end: when the first picture begins, and
    when the last one begins and ends. sound: when the first audio track begins, None without one. seekable: whether
    decoding can begin in the middle.
    """

    path: Path
    size: tuple[int, int]
    start: Fraction
    last: Fraction
    end: Fraction
    sound: Fraction | None
    seekable: bool

    def frames_at(self, fps: int) -> int:
        """How many frames there are at a constant rate, at least 1."""
        return max(1, int((self.end - self.start) * fps + Fraction(1, 2)))


def probe_timeline(path: str | os.PathLike[str], *, sound: bool = True) -> Timeline:
    """Look at the beginning and the end of a file; decodes one picture. Raises InputError if there is none.

    sound: whether to look at the sound too.
    """
    input_file(path, "video")
    first = [*("-map", "0:V:0", "-vf", "trim=end_frame=1", "-fps_mode", "passthrough", "-enc_time_base:v", "demux")]
    heard = ["-map", "0:a:0?", "-af", "atrim=end_sample=1"] if sound else []
    try:
        report = _packets(path, [], [*first, *heard])
        size, begins = _SIZE.search(report), _moments(report)
    except ffmpeg.FfmpegError as error:
        raise InputError(f"video {shown(path)} cannot be decoded: {error}") from None
    if size is None or 0 not in begins:
        raise InputError(f"video {shown(path)} holds no pictures that can be decoded; give a video file")
    seekable = _is_seekable(path)
    last, end = _last_picture(path, seekable)
    return Timeline(
        path=Path(path),
        size=(int(size[2]), int(size[1])),
        start=begins[0][0],
        last=last,
        end=end,
        sound=begins[1][0] if 1 in begins else None,
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
        f"fps={fps}:start_time={float(timeline.start):.9f}",
        f"tpad=stop_mode=clone:stop={math.ceil((timeline.end - timeline.last) * fps)}",
        f"trim=start_frame={start}:end_frame={start + count}",
        f"scale={width}:{height}:flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp",
        "format=rgb24",
        f"crop={size[1]}:{size[0]}:{left}:{top}",
    ]
    return ["-map", "0:V:0", "-vf", ",".join(filters), "-fps_mode", "passthrough", "-f", "rawvideo", "pipe:1"]


def _packets(path: str | os.PathLike[str], options: Iterable[str], output: Iterable[str]) -> str:
    """ffmpeg's list of packets, a line each: stream, decoding time, presentation time, duration, ..."""
    arguments = ["-copyts", *options, *ffmpeg.source(path), *output, "-f", "framecrc", "pipe:1"]
    return ffmpeg.run(arguments).decode(errors="replace")


def _moments(report: str) -> dict[int, tuple[Fraction, Fraction, Fraction]]:
    """For each stream of a list of packets: when the first begins, when the last begins, and when it ends."""
    bases = {int(stream): Fraction(base) for stream, base in _TIME_BASE.findall(report)}
    times: dict[int, list[tuple[Fraction, Fraction]]] = {stream: [] for stream in bases}
    for stream, decoded, presented, duration in (map(int, row) for row in _PACKET.findall(report)):
        begin = (decoded if presented == _NO_TIME else presented) * bases[stream]
        times[stream].append((begin, begin + duration * bases[stream]))
    return {stream: (min(spans)[0], *max(spans)) for stream, spans in times.items() if spans}


def _last_picture(path: str | os.PathLike[str], seekable: bool) -> tuple[Fraction, Fraction]:
    """When it begins and ends: from the end of the file, or from all of it where that cannot be found."""
    copied = ["-map", "0:V:0", "-c", "copy", "-copyinkf"]
    for options in ([["-sseof", _TAIL]] if seekable else []) + [[]]:
        try:
            moments = _moments(_packets(path, options, copied))
        except ffmpeg.FfmpegError:
            continue
        if moments:
            return moments[0][1:]
    raise InputError(f"video {shown(path)} has no time stamps that can be read; convert it to mp4")


def _is_seekable(path: str | os.PathLike[str]) -> bool:
    """Whether it is MP4, QuickTime or Matroska, where seeking finds the key frame in front of a time."""
    with open(path, "rb") as file:
        head = file.read(8)
    return head[4:] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3"
