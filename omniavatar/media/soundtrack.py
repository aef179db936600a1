"""The sound of a video, brought to what AAC and players take, before the first frame is made."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omniavatar.errors import InputError
from omniavatar.lazy import np
from omniavatar.media import ffmpeg
from omniavatar.media.ffmpeg import Ffmpeg, FfmpegError
from omniavatar.media.paths import shown
from omniavatar.media.sound import Samples, Soundtrack

AAC = ("-c:a", "aac", "-b:a", "192k")

_AAC_RATES = frozenset((8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000))
_BEST_RATE = 48000
_AAC_LAYOUTS = re.compile(
    r"mono|stereo|2\.1|3\.0(\(back\))?|3\.1|4\.0|4\.1|quad(\(side\))?|5\.0(\(side\))?|5\.1(\(side\))?|6\.0(\(front\))?|"
    r"hexagonal|6\.1(\((back|front)\))?|7\.0(\(front\))?|7\.1(\(wide(-side)?\))?|octagonal"
)
_MOST_CHANNELS = 64
_LEAST_SECONDS = 0.05

_STREAM = re.compile(r"^  Stream #0:\d+.*?: Audio: \w+.*?, (\d+) Hz, ([^,\n]+)", re.MULTILINE)
_DISK_TROUBLE = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS))


def encode_soundtrack(track: Soundtrack, path: Path, duration: float | None) -> float:
    """Encode a sound as AAC into an mp4 file at `path`, cut or filled with silence to `duration` seconds, if known.

    Returns the seconds that it has, to 10 ms. Samples are counted from the track's first one, as `load_waveform` does.
    A rate that AAC does not take becomes 48 kHz, a layout that it does not take becomes stereo or mono. Raises
    InputError if the sound cannot be used, FfmpegError if the file cannot be written.
    """
    source = _from_memory(track.source) if isinstance(track.source, Samples) else _from_file(track.source)
    filters = ["-map", "0:a:0", "-af", ",".join([*source.remix, *_placed(track, duration)])]
    rate = source.rate if source.rate in _AAC_RATES else _BEST_RATE
    try:
        _run([*source.arguments, *filters, *AAC, "-ar", str(rate), "-f", "mp4", ffmpeg.url(path)], source.feed)
    except FfmpegError as error:
        if str(error).endswith(_DISK_TROUBLE):
            raise
        raise InputError(f"{source.name} cannot be decoded: {error}") from None
    return ffmpeg.duration_in(ffmpeg.describe(path, "audio")) or 0.0


@dataclass(frozen=True)
class _Source:
    """What ffmpeg reads: the name for errors, the arguments, the rate, filters that remix, and samples to feed."""

    name: str
    arguments: list[str]
    rate: int
    remix: list[str]
    feed: np.ndarray | None = None


def _placed(track: Soundtrack, duration: float | None) -> list[str]:
    """The filters that put the sound behind its delay and cut it out; there is always a little, be it silence."""
    least = track.start_seconds + (_LEAST_SECONDS if duration is None else duration)
    end = "" if duration is None else f":end={least:.9f}"
    return [
        "asetpts=N/SR/TB",
        f"adelay=delays={track.delay_seconds * 1000:.3f}:all=1",
        f"apad=whole_dur={least:.6f}",
        f"atrim=start={track.start_seconds:.9f}{end}",
        "asetpts=PTS-STARTPTS",
    ]


def _from_memory(sound: Samples) -> _Source:
    samples = np.ascontiguousarray(sound.samples, dtype="<f4")
    if samples.ndim != 2 or 0 in samples.shape or samples.shape[1] > _MOST_CHANNELS:
        form = f"(n, channels) with 1 to {_MOST_CHANNELS} channels"
        raise InputError(f"audio in memory has the shape {samples.shape}; give {form}")
    if sound.rate < 1 or not np.isfinite(samples).all():
        raise InputError(f"audio in memory at {sound.rate} Hz: give finite samples at 1 Hz or more")
    channels = samples.shape[1]
    arguments = ["-f", "f32le", "-ar", str(sound.rate), "-ac", str(channels), "-i", "pipe:0"]
    return _Source(
        "audio in memory", arguments, sound.rate, [] if channels <= 2 else [_mixed("mono", range(channels))], samples
    )


def _from_file(path: str | os.PathLike[str]) -> _Source:
    name = f"audio {shown(path)}"
    description = ffmpeg.describe(path, "audio")
    match = _STREAM.search(description)
    if match is None:
        reason = "has a damaged audio track" if ": Audio: " in description else "has no audio track"
        raise InputError(f"{name} {reason}; give a sound file or a video with sound")
    try:
        return _Source(name, ffmpeg.source(path), int(match[1]), remixed(match[2].strip()))
    except ValueError as error:
        raise InputError(f"{name} {error}") from None


def remixed(layout: str) -> list[str]:
    """The filters that bring a layout, as ffmpeg names it ("5.1.2", "2 channels (FL+FC)"), to one that AAC takes.

    Left speakers go left, right ones right, those in the middle to both sides, subwoofers to neither; one speaker alone
    and channels without a place become mono. Raises ValueError for more than 64 channels.
    """
    if _AAC_LAYOUTS.fullmatch(layout):
        return []
    if layout.startswith("ambisonic"):  # channel 0 hears all around, channel 1 is positive from the left
        return ["channelmap=0:mono" if layout == "ambisonic 0" else "pan=stereo|c0=0.5*c0+0.5*c1|c1=0.5*c0-0.5*c1"]
    speakers = _speakers(layout)
    unplaced = re.match(r"(\d+) channels", layout)
    count = len(speakers) or int(unplaced[1] if unplaced else 1)
    if count > _MOST_CHANNELS:
        raise ValueError(f"has {count} channels, and {_MOST_CHANNELS} are the most")
    left = [index for index, name in enumerate(speakers) if not name.startswith("LFE") and "R" not in name]
    right = [index for index, name in enumerate(speakers) if not name.startswith("LFE") and "L" not in name]
    if count == 1 or not left or not right:
        return [_mixed("mono", range(count))]
    return [_mixed("stereo", left, right)]


def _mixed(layout: str, *sides: Sequence[int]) -> str:
    """The filter that makes each channel of a layout the mean of some channels of the input."""
    if all(len(side) == 1 for side in sides):  # pan refuses layouts without front speakers if it has nothing to mix
        return f"channelmap={'|'.join(str(side[0]) for side in sides)}:{layout}"
    means = (f"c{number}<{'+'.join(f'c{channel}' for channel in side)}" for number, side in enumerate(sides))
    return "|".join([f"pan={layout}", *means])


def _speakers(layout: str) -> list[str]:
    """The speakers of a layout in their order, such as ["FL", "FC"]; none if they have no places."""
    listed = re.search(r"channels \((.+)\)", layout)
    if listed is None:
        known = ffmpeg.run(["-layouts"]).decode()
        listed = re.search(rf"^{re.escape(layout)} +([A-Z0-9+]+)$", known, re.MULTILINE)
    return [name.partition("@")[0] for name in listed[1].split("+")] if listed else []


def _run(arguments: Sequence[str], feed: np.ndarray | None) -> None:
    with Ffmpeg(["-v", "error", *arguments], feed=feed is not None) as process:
        if feed is not None:
            with contextlib.suppress(BrokenPipeError):  # `finish` says why
                process.stdin.write(feed.data)
        process.finish()
