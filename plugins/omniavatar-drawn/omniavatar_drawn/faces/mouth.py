"""The truth of the procedural faces: how far and how wide a mouth is open, as a function of the sound alone.

Row n belongs to the 40 ms of sound [n/25, (n+1)/25) and is measured through a Hann window of 64 ms around their middle,
then smoothed with its two neighbours (weights 1 2 1), so that it neither leads nor lags.

- Loudness L is the mean power spectrum between 250 and 3500 Hz, where vowels are and hissing consonants are not, in dB.
- The voice's own level V is the 90th percentile of L over the rows that are at most 30 dB below the loudest percent,
  so that neither the gain of a recording nor its silence matters. Below -62 dB there is no voice.
- Opening: the amplitude ratio r = 10 ** (0.75 * (L - V) / 20), from r = 0.15 (22 dB below the voice: closed) to r = 1
  (fully open), linear, then smoothed; what is below 0.06 is closed. Exactly 0 in silence and in noise 22 dB below V.
- Width: the balance B of 1500-3500 Hz against 250-1000 Hz in dB, against the loud rows' median M:
  0.5 + 0.5 * tanh((B - M) / 9), smoothed over five rows. Spread vowels (ee, eh) are bright and wide, round ones (oo,
  oh) are dull and narrow. Where the mouth closes the width goes to its rest, 0.5.
"""

from __future__ import annotations

import numpy as np

from omniavatar.errors import InputError

SAMPLE_RATE = 16000
FPS = 25
REST_WIDTH = 0.5

_HOP = SAMPLE_RATE // FPS
_WINDOW = 1024
_GATE_DB = 22.0
_POWER = 0.75
_DEAD_ZONE = 0.06
_SILENCE_DB = -62.0
_LOUD_DB = 14.0


def mouth_rows(waveform: np.ndarray) -> np.ndarray:
    """Opening and width (rows 2) float32 in 0..1 of a waveform (samples,) at 16 kHz; one row for every 40 ms begun.

    Row n goes with video frame n + 1; frame 0 is the reference picture.
    """
    wave = np.asarray(waveform, np.float64)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise InputError(f"a mouth needs a waveform of shape (samples,) with finite numbers, got shape {wave.shape}")
    if wave.size == 0:
        return np.zeros((0, 2), np.float32)
    power = _power_spectra(wave)
    loudness = _decibel(_band(power, 250, 3500))
    voice = _voice_level(loudness)
    if voice < _SILENCE_DB:
        return at_rest(len(loudness))
    opening = _opening(loudness - voice)
    balance = _decibel(_band(power, 1500, 3500)) - _decibel(_band(power, 250, 1000))
    width = _width(balance, loudness > voice - _LOUD_DB, opening)
    return np.stack([opening, width], axis=1).astype(np.float32)


def mouth_frames(waveform: np.ndarray, frames: int) -> np.ndarray:
    """Opening and width (frames 2) of a video: frame 0 at rest, then the rows of the sound, then rest."""
    rows = mouth_rows(waveform)[: max(0, frames - 1)]
    result = at_rest(frames)
    result[1 : 1 + len(rows)] = rows
    return result


def at_rest(rows: int) -> np.ndarray:
    """Closed mouths (rows 2)."""
    return np.tile(np.array([0.0, REST_WIDTH], np.float32), (rows, 1))


def _power_spectra(wave: np.ndarray) -> np.ndarray:
    """Power (rows bins), in units of a full-scale sine's at its bin."""
    rows = -(-len(wave) // _HOP)
    margin = (_WINDOW - _HOP) // 2
    padded = np.pad(wave, (margin, rows * _HOP - len(wave) + margin))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][:rows]
    window = np.hanning(_WINDOW)
    spectra: np.ndarray = np.abs(np.fft.rfft(pieces * window) * 2 / window.sum()) ** 2
    return spectra


def _band(power: np.ndarray, low: float, high: float) -> np.ndarray:
    frequency = np.arange(power.shape[1]) * SAMPLE_RATE / _WINDOW
    total: np.ndarray = power[:, (frequency >= low) & (frequency < high)].sum(axis=1)
    return total


def _decibel(power: np.ndarray) -> np.ndarray:
    decibel: np.ndarray = 10 * np.log10(power + 1e-14)
    return decibel


def _voice_level(loudness: np.ndarray) -> float:
    active = loudness[loudness >= np.percentile(loudness, 99) - 30]
    return float(np.percentile(active, 90))


def _opening(relative: np.ndarray) -> np.ndarray:
    """From loudness in dB against the voice's level."""
    ratio, closed = 10 ** (_POWER * relative / 20), 10 ** (-_POWER * _GATE_DB / 20)
    smooth = _smoothed(np.clip((ratio - closed) / (1 - closed), 0, 1), (1, 2, 1))
    opening: np.ndarray = np.clip((smooth - _DEAD_ZONE) / (1 - _DEAD_ZONE), 0, 1)
    return opening


def _width(balance: np.ndarray, loud: np.ndarray, opening: np.ndarray) -> np.ndarray:
    spread = 0.5 * np.tanh((balance - np.median(balance[loud])) / 9)
    sure = np.clip(opening / 0.15, 0, 1)
    width: np.ndarray = REST_WIDTH + sure * _smoothed(spread * sure, (1, 2, 2, 2, 1))
    return width


def _smoothed(values: np.ndarray, weights: tuple[int, ...]) -> np.ndarray:
    kernel = np.array(weights) / sum(weights)
    padded = np.pad(values, len(weights) // 2, mode="edge")
    return np.convolve(padded, kernel, mode="valid")
