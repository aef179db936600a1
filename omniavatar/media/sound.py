"""Sounds that a program has in memory, and what is heard beside a video."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniavatar.errors import InputError
from omniavatar.lazy import np
from omniavatar.media.memory import as_array, content_of, described
from omniavatar.media.paths import HeldFile, input_file

MOST_CHANNELS = 64
RATES = (1_000, 1_536_000)
"""The lowest and the highest sample rate, in Hz, that is believed."""
_FULL_SCALES = {"int16": 2.0**15, "int32": 2.0**31}
_KINDS = "a path, bytes, or (samples, sample_rate)"


@dataclass(frozen=True, eq=False)
class Samples:
    """Sound in memory: `samples` (n, channels) float32 in [-1, 1] at `rate` samples a second."""

    samples: np.ndarray
    rate: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.rate


@dataclass(frozen=True)
class Soundtrack:
    """What is heard beside a video, at its own quality.

    source: a file with a sound, or a sound in memory. delay_seconds: of silence in front of it. start_seconds: how much
    of its beginning is left out.
    """

    source: Path | Samples
    delay_seconds: float = 0.0
    start_seconds: float = 0.0


def sound_input(value: Any, name: str = "audio") -> Path | Samples:
    """What a user gives as a sound, as a file that can be read or as `Samples`.

    value: a path; the bytes of an encoded file, or a file object; `(samples, sample_rate)`, with samples (n,),
    (n, channels) or (channels, n), float in [-1, 1], int16 or int32, an array or a tensor; `Samples`.
    name: of the input, for errors. Raises InputError for anything else.
    """
    if isinstance(value, str | os.PathLike):
        return input_file(value, name)
    content = content_of(value, name)
    if content is not None:
        return HeldFile.holding(content)
    if isinstance(value, Samples):
        return _samples(value.samples, value.rate, name)
    if isinstance(value, tuple | list) and len(value) == 2:
        return _samples(value[0], value[1], name)
    if as_array(value) is not None:
        raise InputError(f"{name}: which sample rate? give (samples, sample_rate) instead of {described(value)}")
    raise InputError(f"{name}: {_KINDS}, not {described(value)}")


def check_rate(rate: int, name: str) -> None:
    """Raise InputError for a sample rate, in Hz, that no sound has."""
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(f"{name} has {rate} samples a second; from {RATES[0]} to {RATES[1]} are possible")


def check_channels(channels: int, name: str) -> None:
    """Raise InputError for more channels than are believed, or none."""
    if not 1 <= channels <= MOST_CHANNELS:
        raise InputError(f"{name} has {channels} channels; from 1 to {MOST_CHANNELS} are possible")


def _samples(samples: Any, rate: Any, name: str) -> Samples:
    array = as_array(samples)
    if array is None and as_array(rate) is not None and np.ndim(rate):
        raise InputError(f"{name}: give (samples, sample_rate) in this order")
    if array is None:
        raise InputError(f"{name}: {_KINDS}, not ({described(samples)}, {described(rate)})")
    sound = _scaled(_frames_first(array, name), name)
    return Samples(sound, _whole_rate(rate, name))


def _whole_rate(rate: Any, name: str) -> int:
    try:
        number = float(rate)
    except (TypeError, ValueError):
        raise InputError(f"{name}: a sample rate is a number, not {described(rate)}") from None
    if not math.isfinite(number) or number != int(number):
        raise InputError(f"{name}: a sample rate is a whole number, not {number:g}")
    check_rate(int(number), name)
    return int(number)


def _frames_first(array: np.ndarray, name: str) -> np.ndarray:
    """Samples as (n, channels), where it is clear which is which: there are more samples than channels can be."""
    if array.size == 0:
        raise InputError(f"{name} holds no sound (0 samples)")
    if array.ndim == 1:
        return array[:, None]
    if array.ndim == 2:
        rows, columns = array.shape
        if columns <= MOST_CHANNELS < rows:
            return array
        if rows <= MOST_CHANNELS < columns:
            return array.T
    raise InputError(
        f"{name}: samples are (n,), (n, channels) or (channels, n) with up to {MOST_CHANNELS} channels and more "
        f"samples than that, not {array.shape}"
    )


def _scaled(samples: np.ndarray, name: str) -> np.ndarray:
    """Samples as float32 in [-1, 1]; floating-point ones that go beyond are scaled to a peak of 1."""
    scale = _FULL_SCALES.get(str(samples.dtype))
    if scale is not None:
        return samples.astype(np.float32) / np.float32(scale)
    if samples.dtype.kind != "f":
        raise InputError(f"{name}: samples are float in [-1, 1], int16 or int32, not {samples.dtype}")
    peak = float(np.abs(samples).max())
    if not math.isfinite(peak):
        raise InputError(f"{name} holds samples that are not finite numbers")
    return (samples / peak if peak > 1 else samples).astype(np.float32, copy=False)
