"""Sound in: anything with an audio track that ffmpeg reads, or samples in memory, as one mono waveform."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniavatar.errors import InputError
from omniavatar.lazy import np
from omniavatar.media import ffmpeg
from omniavatar.media.feed import FedFfmpeg
from omniavatar.media.paths import shown
from omniavatar.media.sound import Samples, check_channels, check_rate, sound_input

log = logging.getLogger(__name__)

MOST_HOURS = 6
"""The longest sound that is read as a whole."""
_STREAM = re.compile(
    r"^  Stream #0:\d+(?:\[\w+\])?(?:\([^()\n]*\))?: Audio: (\w+).*?, (\d+) Hz, ([^,\n]+)", re.MULTILINE
)
_ANY_STREAM = re.compile(r"^  Stream #0:\d+.*?: Audio: ", re.MULTILINE)
_GAP = 0.02
_AT_ONCE = 1 << 18
_FAINT = 1e-4
_CANCELLED = 0.1
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


def probe_audio(source: Any) -> AudioInfo:
    """Look at a sound, a file's first audio track, without decoding it. source: as for `load_waveform`.

    Raises InputError if there is none, or one that is not to be believed.
    """
    source = sound_input(source)
    if isinstance(source, Samples):
        return AudioInfo(source.duration, source.rate, source.samples.shape[1], "pcm_f32le")
    description, name = ffmpeg.describe(source, "audio"), _name(source)
    match = _STREAM.search(description)
    if match is None:
        reason = "has a damaged audio track" if _ANY_STREAM.search(description) else "has no audio track"
        raise InputError(f"{name} {reason}; give a sound file or a video with sound")
    info = AudioInfo(
        duration=ffmpeg.duration_in(description),
        sample_rate=int(match[2]),
        channels=_count_channels(match[3]),
        codec=match[1],
    )
    check_rate(info.sample_rate, name)
    check_channels(info.channels, name)
    return info


def check_audio(source: Any, seconds: float | None = None) -> None:
    """Make sure, before any work is done, that there is a sound that begins. Damage further on is found later.

    seconds: how much of it is wanted, None for all. Raises InputError for one that cannot be read so far.
    """
    source = sound_input(source)
    info = probe_audio(source)
    _check_length(info.duration, seconds, _name(source))
    if isinstance(source, Samples):
        return
    first = ["-map", "0:a:0", "-frames:a", "1", "-f", "s16le", "pipe:1"]
    with contextlib.suppress(ffmpeg.FfmpegError):  # to be said when all of it is decoded
        if not ffmpeg.run([*ffmpeg.source(source), *first]):
            raise InputError(f"{_name(source)} holds no sound (0 samples)")


def load_waveform(
    source: Any, sample_rate: int = 16000, *, since: float | None = None, seconds: float | None = None
) -> np.ndarray:
    """A sound, of a file the first audio track: (samples,) float32 in [-1, 1] at `sample_rate` Hz.

    source: a path, the bytes of a file, `(samples, sample_rate)` or `Samples`; see `sound.sound_input`.
    seconds: read no more than that of its beginning; without it a sound may last `MOST_HOURS` hours.

    It is the mean of all channels, or the loudest one where they cancel each other, which a warning says. Samples are
    counted from the track's first one: gaps in its time stamps are closed. With `since`, a time of the file's own clock
    in seconds, the first sample is that of this time, and silence fills the gaps (to 20 ms). A floating-point sound
    that goes beyond 1 is scaled to a peak of 1 rather than clipped. Raises InputError if it cannot be decoded.
    """
    source = sound_input(source)
    info, name = probe_audio(source), _name(source)
    _check_length(info.duration, seconds, name)
    most = round((MOST_HOURS * 3600 if seconds is None else seconds) * sample_rate)
    try:
        wave, cancelled = _mixed(_blocks(source, info.channels, sample_rate, since), most + (seconds is None))
        if cancelled is not None:
            log.warning("%s: its channels cancel each other; channel %d alone is heard", name, cancelled + 1)
            blocks = (block[:, [cancelled]] for block in _blocks(source, info.channels, sample_rate, since))
            wave, _ = _mixed(blocks, most + (seconds is None))
    except ffmpeg.FfmpegError as error:
        raise InputError(f"{name} cannot be decoded: {error}") from None
    if seconds is None:
        _check_length(len(wave) / sample_rate, None, name)
    return _checked(wave, name)


def _blocks(source: Path | Samples, channels: int, sample_rate: int, since: float | None) -> Iterator[np.ndarray]:
    """The sound at `sample_rate`, piece by piece: (n, channels) float32. Raises FfmpegError."""
    if isinstance(source, Samples) and source.rate == sample_rate:
        yield source.samples
        return
    filters, clock = f"aresample={sample_rate}", []
    if since is not None:
        filters = f"asetpts=PTS-({since:.9f})/TB,{filters}:async=1:min_hard_comp={_GAP}:first_pts=0"
        clock = ["-copyts"]
    output = ["-map", "0:a:0", "-af", filters, "-c:a", "pcm_f32le", "-f", "f32le", "pipe:1"]
    with _decoder(source, clock, output) as decoder:
        while piece := decoder.read(_AT_ONCE * channels * 4):
            whole = len(piece) // (channels * 4)  # it may have ended in the middle of a sample
            yield np.frombuffer(piece, "<f4", whole * channels).reshape(whole, channels)
        decoder.finish()


def _decoder(source: Path | Samples, clock: list[str], output: list[str]) -> ffmpeg.Ffmpeg:
    if isinstance(source, Path):
        return ffmpeg.Ffmpeg(["-v", "error", *clock, *ffmpeg.source(source), *output])
    form = ["-f", "f32le", "-ar", str(source.rate), "-ac", str(source.samples.shape[1]), "-i", "pipe:0"]
    pieces = (source.samples[begin : begin + _AT_ONCE] for begin in range(0, len(source.samples), _AT_ONCE))
    return FedFfmpeg(["-v", "error", *form, *output], (piece.astype("<f4", copy=False) for piece in pieces))


def _mixed(blocks: Iterable[np.ndarray], most: int) -> tuple[np.ndarray, int | None]:
    """The mean of the channels, `most` samples of it, and the loudest channel if they cancel each other.

    A mean cannot be weaker than that of one channel alone, 1/n of it, unless channels are opposite.
    """
    waves: list[np.ndarray] = []
    count, power = 0, np.zeros(1)
    for block in blocks:
        piece = block[: most - count]
        waves.append(piece[:, 0].copy() if piece.shape[1] == 1 else piece.mean(axis=1))
        count += len(piece)
        power = power + np.square(piece, dtype=np.float64).sum(axis=0)
        if count == most:
            break
    wave = np.concatenate(waves) if waves else np.zeros(0, np.float32)
    loudest, channels = int(power.argmax()), len(power)
    heard = float(np.square(wave, dtype=np.float64).sum()) * channels**2
    cancelled = channels > 1 and heard < _CANCELLED * power[loudest]
    return wave, loudest if cancelled else None


def _checked(wave: np.ndarray, name: str) -> np.ndarray:
    if wave.size == 0:
        raise InputError(f"{name} holds no sound (0 samples)")
    peak = max(float(wave.max()), -float(wave.min()))
    if not np.isfinite(peak):
        raise InputError(f"{name} holds samples that are not finite numbers; export it again")
    if peak < _FAINT:
        log.warning("%s is silent, so the mouth rests", name)
    if peak > 1:
        wave /= peak
    return wave


def _check_length(duration: float | None, seconds: float | None, name: str) -> None:
    if seconds is None and duration is not None and duration > MOST_HOURS * 3600:
        raise InputError(f"{name} lasts longer than {MOST_HOURS} hours; cut it, or say how much is wanted (--seconds)")


def _name(source: Path | Samples) -> str:
    """What errors call a sound."""
    return f"audio {shown(source)}" if isinstance(source, Path) else f"audio of {len(source.samples)} samples in memory"


def _count_channels(layout: str) -> int:
    """Channels of a layout as ffmpeg prints it: "stereo", "5.1(side)", "9 channels (FL+...)", "ambisonic 1"."""
    name = layout.strip().partition("(")[0].strip()
    if name in _NAMED_LAYOUTS:
        return _NAMED_LAYOUTS[name]
    if name.startswith("ambisonic"):
        return (int(name.split()[1]) + 1) ** 2
    return sum(int(digits) for digits in re.findall(r"\d+", name))
