"""Synthetic speech for training: espeak-ng voices, pauses, and the wear and tear of real recordings.

espeak-ng is a program (Debian package `espeak-ng`); it is needed here only, not to train on clips that exist.
"""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass
from typing import Literal

import numpy as np

from omniavatar.errors import InputError
from omniavatar_drawn.faces.mouth import SAMPLE_RATE
from omniavatar_drawn.faces.sentences import sentence

PROGRAM = "espeak-ng"
_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc", "en-029", "de", "fr", "es", "it")
_ACCENT_WEIGHTS = np.array((5, 4, 2, 2, 2, 1, 2, 2, 2, 2)) / 24
_VARIANTS: dict[str, tuple[str, ...]] = {
    "woman": ("f1", "f2", "f3", "f4", "f5", "Annie", "Andrea", "linda", "steph", "belinda"),
    "man": ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Andy", "Denis", "Lee", "john", "david"),
}
_PITCH = {"woman": (45, 85), "man": (20, 60)}


@dataclass(frozen=True)
class Voice:
    """A speaker of espeak-ng. pitch: 0 to 99; speed: words per minute."""

    accent: str
    variant: str
    pitch: int
    speed: int

    @classmethod
    def from_seed(cls, seed: int, person: Literal["woman", "man"] | None = None) -> Voice:
        """Voice number `seed`, of a woman or a man where that is asked for."""
        random = np.random.Generator(np.random.PCG64([seed, 0x701CE]))
        drawn = "woman" if random.random() < 0.5 else "man"
        variants, pitch = _VARIANTS[person or drawn], _PITCH[person or drawn]
        return cls(
            accent=str(random.choice(_ACCENTS, p=_ACCENT_WEIGHTS)),
            variant=variants[int(random.integers(len(variants)))],
            pitch=int(random.integers(*pitch)),
            speed=int(random.integers(120, 200)),
        )


def speak(text: str, voice: Voice) -> np.ndarray:
    """The spoken text (samples,) float32 at 16 kHz, without silence at its ends."""
    name = f"{voice.accent}+{voice.variant}"
    command = [PROGRAM, "-v", name, "-p", str(voice.pitch), "-s", str(voice.speed), "--stdin", "--stdout"]
    try:
        result = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    except FileNotFoundError:
        raise InputError(
            f"{PROGRAM} is not installed; it makes the speech to train on: apt install espeak-ng"
        ) from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {error.returncode}"]
        raise InputError(f"{PROGRAM} cannot speak with the voice {name}: {reason[-1]}") from None
    return _trimmed(_wave_file(result.stdout))


def utterance(
    seed: int, seconds: float, *, person: Literal["woman", "man"] | None = None, worn: bool = True
) -> np.ndarray:
    """Speech number `seed` (samples,) float32 at 16 kHz that lasts `seconds`, pauses included.

    Silence of 0 to 0.6 s comes first, pauses of 0.3 to 1.5 s come between sentences and now and then inside one. worn:
    with the traces of a real recording, see `wear`.
    """
    random = np.random.Generator(np.random.PCG64([seed, 0x5BEEC4]))
    voice = Voice.from_seed(seed, person)
    total = round(seconds * SAMPLE_RATE)
    pieces = [_silence(random.uniform(0, 0.6))]
    while sum(map(len, pieces)) < total:
        pieces += _with_a_pause(speak(sentence(voice.accent[:2], random), voice), random)
        pieces.append(_silence(random.uniform(0.3, 1.5) if random.random() < 0.75 else 0.08))
    wave = np.concatenate(pieces)[:total]
    tail = min(total, round(random.uniform(0.3, 1.5) * SAMPLE_RATE)) if random.random() < 0.25 else 0
    wave[total - tail :] = 0
    wave = _faded(wave, total - tail)
    return wear(wave, random) if worn else wave


def wear(wave: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """What recordings do to a voice, each drawn from `random`, the length kept (samples,).

    A small change of speed and pitch, a room's echo, tone (slope, low-pass), noise 20 to 40 dB below the voice, gain.
    """
    loud = wave[np.abs(wave) > 0.02 * max(1e-6, float(np.abs(wave).max()))]
    level = float(np.sqrt(np.mean(loud**2))) if loud.size else 0.0
    length = len(wave)
    if random.random() < 0.5:
        wave = _fitted(resampled(wave, SAMPLE_RATE, round(SAMPLE_RATE * random.uniform(0.93, 1.07))), length)
    if random.random() < 0.35:
        wave = _echoed(wave, random)
    if random.random() < 0.6:
        wave = _toned(wave, random.uniform(-4, 4), random.uniform(3400, 8000) if random.random() < 0.4 else 8000)
    if random.random() < 0.6:
        noise = _toned(random.standard_normal(length), random.uniform(-6, 0), 8000)
        noise *= level * 10 ** (-random.uniform(20, 40) / 20) / max(1e-9, float(noise.std()))
        wave = wave + noise
    gain = 10 ** (random.uniform(-18, 0) / 20) / max(1e-6, float(np.abs(wave).max()))
    return (wave * gain if level else wave).astype(np.float32)


def resampled(wave: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """The same sound at another sampling rate, by its Fourier series; what the new rate cannot carry is left out."""
    if rate == new_rate or len(wave) == 0:
        return np.asarray(wave, np.float32)
    unit = rate // math.gcd(rate, new_rate)
    quiet = np.pad(np.asarray(wave, np.float64), (0, 256 + -(len(wave) + 256) % unit))  # a gap before it repeats
    length = len(quiet) * new_rate // rate
    source = np.fft.rfft(quiet)
    spectrum = np.zeros(length // 2 + 1, complex)
    kept = min(len(source), len(spectrum))
    spectrum[:kept] = source[:kept]
    result = np.fft.irfft(spectrum, length) * (length / len(quiet))
    return result[: round(len(wave) * new_rate / rate)].astype(np.float32)


def _wave_file(data: bytes) -> np.ndarray:
    """The samples of espeak-ng's output, whose header does not know its length."""
    start = data.find(b"data") + 8
    if data[:4] != b"RIFF" or start < 8:
        raise InputError(f"{PROGRAM} gave no sound; look at what `{PROGRAM} --stdout hello` writes")
    rate = int.from_bytes(data[24:28], "little")
    samples = np.frombuffer(data[start : start + (len(data) - start) // 2 * 2], "<i2")
    return resampled(samples.astype(np.float32) / 32768, rate, SAMPLE_RATE)


def _trimmed(wave: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(wave) > 0.004)
    return wave[loud[0] : loud[-1] + 1] if loud.size else wave[:0]


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def _with_a_pause(wave: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """Sometimes a longer sentence stops at its quietest moment."""
    if len(wave) < 1.2 * SAMPLE_RATE or random.random() > 0.3:
        return [wave]
    frame = SAMPLE_RATE // 50
    energy = np.square(wave[: len(wave) // frame * frame].reshape(-1, frame)).sum(axis=1)
    energy = np.convolve(energy, np.ones(3), "same")
    inner = slice(len(energy) // 4, 3 * len(energy) // 4)
    cut = (inner.start + int(np.argmin(energy[inner]))) * frame
    return [wave[:cut], _silence(random.uniform(0.3, 0.8)), wave[cut:]]


def _faded(wave: np.ndarray, end: int) -> np.ndarray:
    """Fade out over the 15 ms before sample `end`, where a word may have been cut."""
    ramp = min(240, end)
    wave[end - ramp : end] *= np.linspace(1, 0, ramp, dtype=np.float32)
    return wave


def _echoed(wave: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A small room: noise that decays by 60 dB in 0.1 to 0.35 s, 8 to 18 dB below the direct sound."""
    seconds = random.uniform(0.1, 0.35)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    room = random.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    room *= 10 ** (-random.uniform(8, 18) / 20) / np.sqrt(np.square(room).sum())
    room[0] += 1
    size = len(wave) + len(room)
    return np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(room, size), size)[: len(wave)]


def _toned(wave: np.ndarray, slope: float, cutoff: float) -> np.ndarray:
    """Tilt the spectrum by `slope` dB per octave around 1 kHz, within 9 dB, and end it softly at `cutoff` Hz."""
    frequency = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    tilt = np.clip(slope * np.log2(np.maximum(frequency, 1) / 1000), -9, 9)
    limit = 1 / (1 + (frequency / cutoff) ** 16) if cutoff < SAMPLE_RATE / 2 else 1.0
    return np.fft.irfft(np.fft.rfft(wave) * 10 ** (tilt / 20) * limit, len(wave))


def _fitted(wave: np.ndarray, length: int) -> np.ndarray:
    return np.pad(wave[:length], (0, max(0, length - len(wave))))
