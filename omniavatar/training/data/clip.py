"""Training clips from files: pictures at 25 frames a second with the sound that belongs to them, sample by sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from omniavatar.engine.geometry import rounded_down
from omniavatar.engine.pictures import Size, usable_sizes
from omniavatar.errors import InputError
from omniavatar.media.audio import load_waveform
from omniavatar.media.image import choose_size
from omniavatar.media.paths import input_file, shown
from omniavatar.media.timeline import Timeline, probe_timeline, read_frames
from omniavatar.training.data.lists import Entry
from omniavatar.units.audio import SAMPLE_RATE

FPS = 25
FRAME_SAMPLES = SAMPLE_RATE // FPS
"""Samples of sound that go with a frame."""


class Unusable(InputError):
    """A clip that cannot be trained on; `kind` is why, in words that many clips may share."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Limits(BaseModel):
    """What a clip must be like to be trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sizes: tuple[Size, ...] = Field(
        ((400, 720), (720, 720), (720, 400)),
        min_length=1,
        description="sizes to train at, [height, width] in pixels; each clip takes the one nearest to its shape",
    )
    min_frames: int = Field(17, ge=5, description="frames at 25 a second that a clip has at least")
    enlarge: float = Field(1.5, gt=0, description="how many times larger than they are pictures may be made")
    no_sound: Literal["refuse", "silence"] = Field("refuse", description="what becomes of clips that have no sound")
    quietest: float | None = Field(
        -50, le=0, description="loudness that a sound needs: its root mean square, dB of full scale; none: any"
    )
    heard: float = Field(0.9, ge=0, le=1, description="part of the video's length that its sound covers at least")

    @field_validator("sizes")
    @classmethod
    def _usable(cls, sizes: tuple[Size, ...]) -> tuple[Size, ...]:
        return usable_sizes(sizes)


@dataclass(frozen=True)
class Piece:
    """Frames [start, start + count) of a clip; count is 4n+1."""

    start: int
    count: int

    @property
    def samples(self) -> slice:
        """Its part of the clip's sound."""
        return slice(self.start * FRAME_SAMPLES, (self.start + self.count) * FRAME_SAMPLES)


@dataclass(frozen=True)
class Clip:
    """A video that has been looked at, not read.

    frames: at 25 a second, whatever the file's own rate is. bucket: the size (height, width) to train it at.
    """

    entry: Entry
    timeline: Timeline
    frames: int
    bucket: Size
    limits: Limits

    @property
    def prompt(self) -> str:
        return self.entry.prompt

    @property
    def seconds(self) -> float:
        return self.frames / FPS

    @property
    def size(self) -> Size:
        """Height and width of its own pictures."""
        return self.timeline.size

    def pictures(self, start: int, count: int, size: Size | None = None) -> np.ndarray:
        """Frames [start, start + count): (count h w 3) uint8, RGB, at `size` or else the bucket's size.

        Scaled to cover it and cropped in the middle. Raises InputError if they cannot all be decoded.
        """
        if not 0 <= start < start + count <= self.frames:
            raise ValueError(f"frames [{start}, {start + count}) are not within the clip's {self.frames}")
        return read_frames(self.timeline, start, count, fps=FPS, size=size or self.bucket)

    def sound(self) -> np.ndarray:
        """The sound (n,) float32 at 16 kHz, as long as the video: frame k goes with samples [640 k, 640 (k + 1)).

        A video's own sound is placed by its time stamps; a file of its own begins with frame 0.
        Raises InputError if it cannot be decoded, and Unusable if it is silent or too short.
        """
        length = self.frames * FRAME_SAMPLES
        own, begin = self.entry.audio is None, self.timeline.start
        if own and self.timeline.sound is None:
            return np.zeros(length, np.float32)
        path = self.entry.audio or self.entry.video
        wave = load_waveform(path, SAMPLE_RATE, since=float(begin) if own else None)[:length]
        late = max(0.0, float((self.timeline.sound or begin) - begin)) * SAMPLE_RATE if own else 0.0
        covered = (len(wave) - late) / length
        if covered < self.limits.heard:
            raise Unusable(
                "sound too short",
                f"sound of {shown(path)} covers {covered:.0%} of {self.seconds:.2f} s of pictures; "
                f"the least is {self.limits.heard:.0%} (heard)",
            )
        self._check_loudness(wave)
        return np.pad(wave, (0, length - len(wave)))

    def _check_loudness(self, wave: np.ndarray) -> None:
        quietest = self.limits.quietest
        level = 10 * math.log10(max(float(np.mean(np.square(wave, dtype=np.float64))), 1e-20))
        if quietest is not None and level < quietest:
            path = self.entry.audio or self.entry.video
            raise Unusable(
                "silent", f"sound of {shown(path)} is silent: {level:.0f} dB; the least is {quietest:g} dB (quietest)"
            )


def open_clip(entry: Entry, limits: Limits) -> Clip:
    """Look at a clip's files without reading them through.

    Raises InputError for a file that cannot be read, and Unusable for a clip that goes beyond the limits.
    """
    if entry.fault is not None:
        raise Unusable("bad entry", entry.fault)
    for path in (entry.video, entry.audio):
        if path is not None and not path.exists():
            raise Unusable("missing file", f"{shown(path)} does not exist")
    timeline = probe_timeline(entry.video, sound=entry.audio is None)
    frames = timeline.frames_at(FPS)
    if frames < limits.min_frames:
        raise Unusable(
            "too short",
            f"video {shown(entry.video)} has {frames} frames at {FPS} a second; "
            f"the least is {limits.min_frames} (min_frames)",
        )
    bucket = choose_size(*timeline.size, limits.sizes)
    scale = max(bucket[0] / timeline.size[0], bucket[1] / timeline.size[1])
    if scale > limits.enlarge:
        raise Unusable(
            "too small",
            f"video {shown(entry.video)} of {timeline.size[1]}x{timeline.size[0]} would be made {scale:.2f} times "
            f"larger for {bucket[1]}x{bucket[0]}; the most is {limits.enlarge:g} (enlarge)",
        )
    if entry.audio is not None:
        input_file(entry.audio, "audio")
    elif timeline.sound is None and limits.no_sound == "refuse":
        raise Unusable(
            "no sound", f"video {shown(entry.video)} has no sound; name one, or take it as silence (no_sound)"
        )
    return Clip(entry, timeline, frames, bucket, limits)


def random_piece(frames: int, window: int, factor: int, draw: torch.Generator) -> Piece:
    """A piece of `window` frames somewhere in a clip, or the longest possible of a clip that is shorter.

    factor: frames of a latent; a piece has 1 + factor n frames.
    """
    if window < 1 or window != rounded_down(window, factor):
        raise ValueError(f"a window of {window} frames is not {factor}n+1")
    count = min(window, rounded_down(frames, factor))
    return Piece(int(torch.randint(frames - count + 1, (), generator=draw)), count)
