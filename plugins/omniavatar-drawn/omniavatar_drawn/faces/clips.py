"""Whole training clips from a number: a face, its motion, its voice, its caption and the truth about its mouth."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omniavatar_drawn.faces import FPS, Identity, Performance, Renderer, caption
from omniavatar_drawn.faces.mouth import REST_WIDTH, SAMPLE_RATE, mouth_frames
from omniavatar_drawn.faces.speech import utterance


@dataclass(frozen=True)
class Clip:
    """A talking head of `frames` pictures at 25 frames/s.

    waveform: (samples,) float32 at 16 kHz, (frames - 1) / 25 s long; frame n >= 1 goes with its nth 40 ms, frame 0 is a
    mouth at rest. mouth: opening and width (frames 2).
    """

    who: Identity
    performance: Performance
    waveform: np.ndarray
    mouth: np.ndarray
    caption: str

    @classmethod
    def from_seed(cls, seed: int, frames: int, waveform: np.ndarray | None = None) -> Clip:
        """Clip number `seed`, with synthetic speech of its own or the given sound, cut or filled up with silence."""
        who, performance = Identity.from_seed(seed), Performance.from_seed(seed)
        length = (frames - 1) * SAMPLE_RATE // FPS
        if waveform is None:
            waveform = utterance(seed, length / SAMPLE_RATE, person=who.person)
        fitted = np.pad(waveform[:length], (0, max(0, length - len(waveform)))).astype(np.float32)
        return cls(who, performance, fitted, mouth_frames(fitted, frames), caption(who, performance))

    @classmethod
    def babbling(cls, seed: int, frames: int) -> Clip:
        """Clip number `seed` with a mouth that moves at random and no sound: for learning pictures alone."""
        random = np.random.Generator(np.random.PCG64([seed, 0xBAB]))
        opening = np.clip(1.5 * _wandering(frames, 3, random) - 0.4, 0, 1) * (_wandering(frames, 25, random) > 0.3)
        opening[0] = 0
        width = np.where(opening > 0, _wandering(frames, 4, random), REST_WIDTH)
        who, performance = Identity.from_seed(seed), Performance.from_seed(seed)
        silence = np.zeros((frames - 1) * SAMPLE_RATE // FPS, np.float32)
        mouth = np.stack([opening, width], axis=1).astype(np.float32)
        return cls(who, performance, silence, mouth, caption(who, performance))

    def pictures(self, size: int, frames: Sequence[int] | None = None) -> np.ndarray:
        """All frames, or those of these numbers: (t size size 3) uint8."""
        renderer = Renderer(self.who, size)
        numbers = range(len(self.mouth)) if frames is None else frames
        return np.stack([renderer.draw(self.performance.pose(n), tuple(self.mouth[n])) for n in numbers])


def _wandering(frames: int, period: int, random: np.random.Generator) -> np.ndarray:
    """A curve (frames) in 0..1 that goes in straight lines between random points, `period` frames apart."""
    points = random.uniform(0, 1, frames // period + 2)
    return np.interp(np.arange(frames) / period, np.arange(len(points)), points)


def write_wave(path: Path, waveform: np.ndarray) -> None:
    """Write (samples,) in [-1, 1] at 16 kHz as 16-bit WAV."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())


def write_clip(clip: Clip, path: Path, size: int) -> None:
    """Write a clip as an mp4 with its sound, for looking."""
    from omniavatar.media.writer import Soundtrack, VideoWriter

    sound = path.with_suffix(".wav")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wave(sound, clip.waveform)
    try:
        track = Soundtrack(sound, delay_seconds=1 / FPS)
        with VideoWriter(path, width=size, height=size, fps=FPS, soundtrack=track) as video:
            video.write(clip.pictures(size))
    finally:
        sound.unlink()
