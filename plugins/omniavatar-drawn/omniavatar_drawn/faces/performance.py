"""How the head moves during a clip: slow drifts, nods, blinks, brows and glances, all smooth in time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

FPS = 25

Manner = Literal["still", "calm", "lively"]
Mood = Literal["neutral", "smiling", "surprised", "serious"]

MANNERS: tuple[Manner, ...] = ("still", "calm", "lively")
MOODS: tuple[Mood, ...] = ("neutral", "smiling", "surprised", "serious")
_AMOUNT: dict[Manner, float] = {"still": 0.12, "calm": 0.55, "lively": 1.0}
_PACE: dict[Manner, float] = {"still": 0.7, "calm": 0.8, "lively": 1.5}
_SMILE: dict[Mood, float] = {"neutral": 0.25, "smiling": 1.0, "surprised": 0.1, "serious": -0.25}
_BROW: dict[Mood, float] = {"neutral": 0.0, "smiling": 0.15, "surprised": 0.9, "serious": -0.7}
_BLINK = (0.35, 0.9, 1.0, 0.7, 0.3)
_FIRST_BLINK = 12  # frames; the first pictures show open eyes


@dataclass(frozen=True)
class Pose:
    """A head at rest by default. Positions are fractions of the picture's side, the rest runs from -1 to 1.

    x, y: offset of the head; angle: degrees, clockwise; scale: factor; yaw, pitch: turned to the picture's right, down;
    blink: 0 open to 1 closed; brow: 1 raised; gaze_x, gaze_y: right, down; smile: corners of the mouth up.
    """

    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    scale: float = 1.0
    yaw: float = 0.0
    pitch: float = 0.0
    blink: float = 0.0
    brow: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    smile: float = 0.25


@dataclass(frozen=True)
class Performance:
    """The motion of one clip, of any length: `pose(n)` is the pose of frame n at 25 frames/s."""

    seed: int
    manner: Manner
    mood: Mood
    _waves: dict[str, np.ndarray] = field(repr=False, compare=False)

    @classmethod
    def from_seed(cls, seed: int, manner: Manner | None = None, mood: Mood | None = None) -> Performance:
        """Motion number `seed`; manner and mood are drawn from it where they are not given."""
        random = np.random.Generator(np.random.PCG64([seed, 0x90E5]))
        drawn_manner = MANNERS[int(random.integers(len(MANNERS)))]
        drawn_mood = MOODS[int(random.choice(len(MOODS), p=(0.4, 0.3, 0.15, 0.15)))]
        manner, mood = manner or drawn_manner, mood or drawn_mood
        names = ("x", "y", "angle", "scale", "yaw", "pitch", "brow", "gaze_x", "gaze_y", "smile")
        return cls(seed, manner, mood, {name: _wave(random, _PACE[manner]) for name in names})

    def pose(self, frame: int) -> Pose:
        amount = _AMOUNT[self.manner]
        wave = {name: _value(parts, frame / FPS) for name, parts in self._waves.items()}
        return Pose(
            x=0.028 * amount * wave["x"],
            y=0.018 * amount * wave["y"],
            angle=5.0 * amount * wave["angle"],
            scale=1 + 0.03 * amount * wave["scale"],
            yaw=0.75 * amount * wave["yaw"],
            pitch=0.8 * amount * wave["pitch"],
            blink=self._blink(frame),
            brow=float(np.clip(_BROW[self.mood] + 0.25 * wave["brow"], -1, 1)),
            gaze_x=0.5 * float(np.tanh(2 * wave["gaze_x"])),
            gaze_y=0.3 * float(np.tanh(2 * wave["gaze_y"])),
            smile=float(np.clip(_SMILE[self.mood] + 0.15 * wave["smile"], -1, 1)),
        )

    def _blink(self, frame: int) -> float:
        """Blinks last 5 frames and come every 2 to 5 seconds: one in each 3.5 s, somewhere in its middle 1.5 s."""
        period, spread = round(3.5 * FPS), round(1.5 * FPS)
        index = (frame - _FIRST_BLINK) // period
        if index < 0:
            return 0.0
        jitter = int(np.random.Generator(np.random.PCG64([self.seed, 0xB71C, index])).integers(spread))
        position = (frame - _FIRST_BLINK) - index * period - jitter - spread // 2
        return _BLINK[position] if 0 <= position < len(_BLINK) else 0.0


def _wave(random: np.random.Generator, pace: float) -> np.ndarray:
    """Three slow sines (3 3): amplitude, frequency in Hz, phase; their sum stays within -1..1."""
    frequency = pace * random.uniform((0.08, 0.2, 0.4), (0.2, 0.4, 0.7))
    amplitude = random.uniform((0.35, 0.2, 0.05), (0.5, 0.3, 0.2))
    return np.stack([amplitude, frequency, random.uniform(0, 2 * np.pi, 3)])


def _value(wave: np.ndarray, seconds: float) -> float:
    amplitude, frequency, phase = wave
    return float((amplitude * np.sin(2 * np.pi * frequency * seconds + phase)).sum())
