"""Sound in: anything with an audio track that ffmpeg reads, as one mono waveform."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

import numpy as np

from omniavatar.errors import InputError
from omniavatar.media import ffmpeg
from omniavatar.media.paths import shown

_STREAM = re.compile(r"^ +Stream #0:\d+.*?: Audio: (\w+).*?, (\d+) Hz, ([^,\n]+)", re.MULTILINE)
_GAP = 0.02
_NAMED_LAYOUTS = {
    "mono": 1,
    "stereo": 2,
    "downmix": 2,
    "binaural": 2,
    "quad": 4,
    "hexagonal": 6,
    "octagonal": 8,
    "cube": 8,
    "hexadecagonal": 16,
}


@dataclass(frozen=True)
class AudioInfo:
    """The first audio track of a file. `duration` is the container's figure in seconds, None where it has none."""

    duration: float | None
    sample_rate: int
    channels: int
    codec: str


def probe_audio(path: str | os.PathLike[str]) -> AudioInfo:
    """Look at the first audio track of a file without decoding it."""
    description = ffmpeg.describe(path, "audio")
    match = _STREAM.search(description)
    if match is None:
        reason = "has a damaged audio track" if ": Audio: " in description else "has no audio track"
        raise InputError(f"audio {shown(path)} {reason}; give a sound file or a video with sound")
    return AudioInfo(
        duration=ffmpeg.duration_in(description),
        sample_rate=int(match[2]),
        channels=_count_channels(match[3]),
        codec=match[1],
    )


def check_audio(path: str | os.PathLike[str]) -> None:
    """Make sure, before any work is done, that a file has a sound that begins. Damage further on is found later."""
    probe_audio(path)
    first = ["-map", "0:a:0", "-frames:a", "1", "-f", "s16le", "pipe:1"]
    with contextlib.suppress(ffmpeg.FfmpegError):  # to be said when all of it is decoded
        if not ffmpeg.run([*ffmpeg.source(path), *first]):
            raise InputError(f"audio {shown(path)} holds no sound (0 samples)")


def load_waveform(
    path: str | os.PathLike[str] | np.ndarray, sample_rate: int = 16000, *, since: float | None = None
) -> np.ndarray:
    """Decode the first audio track: (samples,) float32 in [-1, 1] at `sample_rate` Hz, the mean of its channels.

    Samples are counted from the track's first one: gaps in its time stamps are closed. With `since`, a time of the
    file's own clock in seconds, the first sample is that of this time, and silence fills the gaps (to 20 ms). A
    floating-point file that goes beyond 1 is scaled to a peak of 1 rather than clipped. What is in memory already,
    (samples,) at `sample_rate`, stays as it is.
    """
    if isinstance(path, np.ndarray):
        if path.ndim != 1 or path.dtype.kind != "f" or path.size == 0 or not np.isfinite(path).all():
            raise InputError(f"a sound in memory is (samples,) of finite numbers, not {path.shape} {path.dtype}")
        return path.astype(np.float32, copy=False)
    info = probe_audio(path)
    filters, clock = f"{mean_of_channels(info.channels)},aresample={sample_rate}", []
    if since is not None:
        filters = f"asetpts=PTS-({since:.9f})/TB,{filters}:async=1:min_hard_comp={_GAP}:first_pts=0"
        clock = ["-copyts"]
    output = ["-map", "0:a:0", "-af", filters, "-c:a", "pcm_f32le", "-f", "f32le", "pipe:1"]
    arguments = [*clock, *ffmpeg.source(path), *output]
    try:
        waveform = np.frombuffer(ffmpeg.run(arguments), dtype="<f4")
    except ffmpeg.FfmpegError as error:
        raise InputError(f"audio {shown(path)} cannot be decoded: {error}") from None
    if waveform.size == 0:
        raise InputError(f"audio {shown(path)} holds no sound (0 samples)")
    peak = max(float(waveform.max()), -float(waveform.min()))
    if not np.isfinite(peak):
        raise InputError(f"audio {shown(path)} holds samples that are not finite numbers; export it again")
    if peak > 1:
        waveform /= peak
    return waveform


def mean_of_channels(channels: int) -> str:
    """The ffmpeg filter that averages all channels.

    ffmpeg's own `-ac 1` follows the broadcast rule: stereo becomes (left + right) / sqrt(2), 3 dB louder and able to
    clip, subwoofers are dropped, and layouts without a name fail.
    """
    return "pan=mono|c0<" + "+".join(f"c{index}" for index in range(channels))


def _count_channels(layout: str) -> int:
    """Channels of a layout as ffmpeg prints it: "stereo", "5.1(side)", "9 channels (FL+...)", "ambisonic 1"."""
    name = layout.strip().partition("(")[0].strip()
    if name in _NAMED_LAYOUTS:
        return _NAMED_LAYOUTS[name]
    if name.startswith("ambisonic"):
        return (int(name.split()[1]) + 1) ** 2
    return sum(int(digits) for digits in re.findall(r"\d+", name))
