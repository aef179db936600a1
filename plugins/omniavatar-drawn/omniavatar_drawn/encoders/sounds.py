"""Sounds to train an audio encoder on: cuts of synthetic speech, never the same twice, and much that is no speech.

Synthetic voices are alike, people and microphones are not: filters with peaks and holes like a vocal tract's or a
room's, speed and pitch, noise and gain are drawn anew for every sound. Its truth is measured afterwards
(`omniavatar_drawn.faces.mouth`), so that nothing has to be left as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omniavatar.errors import InputError
from omniavatar_drawn.faces.mouth import SAMPLE_RATE
from omniavatar_drawn.faces.speech import utterance

_KINDS = ("speech", "tones", "noise", "nothing")
_CHANCES = (0.84, 0.05, 0.08, 0.03)
_LEAD = round(0.3 * SAMPLE_RATE)  # what the audio unit puts in front of every sound


@dataclass(frozen=True)
class Recordings:
    """Utterances of one length (n samples) int16 at 16 kHz."""

    waves: np.ndarray

    @classmethod
    def make(cls, seeds: Sequence[int], seconds: float) -> Recordings:
        """The utterances of these numbers."""
        waves = [utterance(seed, seconds) for seed in seeds]
        return cls(np.stack([np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16) for wave in waves]))

    @classmethod
    def cached(cls, path: Path, seeds: Sequence[int], seconds: float) -> Recordings:
        """The same from a file, which is written if it is not there. Raises InputError where it holds others."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, cls.make(seeds, seconds).waves)
        waves = np.load(path, mmap_mode="r")
        expected = (len(seeds), round(seconds * SAMPLE_RATE))
        if waves.shape != expected:
            raise InputError(f"{path} holds recordings of shape {waves.shape}, needed is {expected}; remove it")
        return cls(waves)

    def cut(self, samples: int, random: np.random.Generator) -> np.ndarray:
        """A random piece (samples,) float32, at 0.8 to 1.25 times its speed and pitch in one of two."""
        speed = float(np.exp(random.uniform(-0.22, 0.22))) if random.random() < 0.5 else 1.0
        needed = int(np.ceil(samples * speed)) + 1
        count, length = self.waves.shape
        if needed > length:
            speed, needed = 1.0, samples
        if needed > length:
            raise InputError(f"recordings of {length} samples have no piece of {samples}; make longer ones")
        start = int(random.integers(length - needed + 1))
        piece = self.waves[int(random.integers(count)), start : start + needed].astype(np.float32) / 32767
        if speed == 1.0:
            return piece[:samples]
        faster: np.ndarray = np.interp(np.arange(samples) * speed, np.arange(needed), piece).astype(np.float32)
        return faster


def sound(recordings: Recordings, samples: int, random: np.random.Generator) -> np.ndarray:
    """A random sound (samples,) float32 at 16 kHz: mostly speech; tones, noise or nothing now and then."""
    kind = str(random.choice(_KINDS, p=_CHANCES))
    if kind == "nothing":
        return np.zeros(samples, np.float32)
    if kind == "speech":
        wave = _drifting(recordings.cut(samples, random), random)
    else:
        wave = tones(samples, random) if kind == "tones" else random.standard_normal(samples)
    if random.random() < 0.8:
        wave = filtered(wave, random)
    wave = wave / max(1e-9, float(np.abs(wave).max()))
    if kind != "noise" and random.random() < 0.5:
        wave = _noisy(wave, random)
    if random.random() < 0.5 and samples > 2 * _LEAD:
        wave = np.concatenate([np.zeros(_LEAD), wave[:-_LEAD]])
    is_quiet = random.random() < (0.06 if kind == "speech" else 0.5)
    level = random.uniform(-100, -30) if is_quiet else random.uniform(-30, 0)
    return (wave * 10 ** (level / 20)).astype(np.float32)


def tones(samples: int, random: np.random.Generator) -> np.ndarray:
    """Something like music (samples,): chords of decaying notes with overtones."""
    time = np.arange(samples) / SAMPLE_RATE
    wave = np.zeros(samples)
    beat = random.uniform(0.2, 1.0)
    for start in np.arange(0, time[-1], beat):
        here = slice(int(start * SAMPLE_RATE), min(samples, int((start + 2 * beat) * SAMPLE_RATE)))
        past = time[here] - start
        envelope = np.minimum(past / 0.01, 1) * np.exp(-past * random.uniform(0.5, 6))
        for _ in range(int(random.integers(1, 4))):
            note = 110 * 2 ** (random.integers(0, 36) / 12)
            for overtone in range(1, 4):
                wave[here] += envelope * np.sin(2 * np.pi * note * overtone * past) / overtone**1.5
    return wave


def filtered(wave: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Up to six peaks or holes of up to 14 dB, a slope, and in one of three an end of the highs or the lows."""
    size = len(wave) + SAMPLE_RATE // 20
    octave = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 20) / 1000)
    decibel = random.uniform(-4, 4) * np.clip(octave, -3, 2)
    for _ in range(int(random.integers(0, 7))):
        middle, width = random.uniform(-3.5, 3), random.uniform(0.15, 0.8)
        decibel += random.uniform(-14, 14) * np.exp(-(((octave - middle) / width) ** 2))
    if random.random() < 0.33:
        decibel -= 48 * np.clip(octave - random.uniform(1.6, 2.9), 0, 1.5)
    if random.random() < 0.33:
        decibel -= 36 * np.clip(random.uniform(-3.5, -1.8) - octave, 0, 2)
    result: np.ndarray = np.fft.irfft(np.fft.rfft(wave, size) * 10 ** (decibel / 20), size)[: len(wave)]
    return result


def _drifting(wave: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A voice that comes nearer and goes away, within 6 dB in two seconds, in one of three."""
    if random.random() < 0.67:
        return wave
    knots = random.uniform(-6, 0, 2 + len(wave) // (2 * SAMPLE_RATE))
    decibel = np.interp(np.linspace(0, len(knots) - 1, len(wave)), np.arange(len(knots)), knots)
    result: np.ndarray = wave * 10 ** (decibel / 20)
    return result


def _noisy(wave: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Noise of some colour, 12 to 50 dB below the sound."""
    noise = filtered(random.standard_normal(len(wave)), random)
    noise *= float(wave.std()) * 10 ** (-random.uniform(12, 50) / 20) / max(1e-9, float(noise.std()))
    result: np.ndarray = wave + noise
    return result
