"""Drawn faces as clips to train on and as portraits for `omni bench --faces`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from omniavatar.errors import InputError
from omniavatar.media.audio import load_waveform
from omniavatar.media.paths import shown
from omniavatar.training.data.clip import FRAME_SAMPLES
from omniavatar.training.data.generated import ClipGenerator
from omniavatar.training.data.lists import digest, stamp
from omniavatar.training.samples import NOT_HERE
from omniavatar_drawn.faces.clips import Clip

NAME = "faces"
UNSEEN = 9_000_000
"""No network was trained on faces, captions or voices from this number on."""
UNSEEN_SIDE = 256


class FaceSettings(BaseModel):
    """Drawn talking heads to train on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clips: int = Field(ge=1, description="how many")
    first: int = Field(1_000_000, ge=0, description="number of the first; the same number is the same face")
    frames: int = Field(101, ge=5, description="length of a clip at 25 frames/s")
    side: int = Field(128, ge=32, le=1024, description="width and height in pixels")
    sounds: Path | None = Field(None, description="folder of speech to draw from; none: espeak-ng speaks")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of speech, in alphabetical order. Raises InputError if there is no such folder."""
        if self.sounds is not None and not self.sounds.is_dir():
            raise InputError(f"data.generated.{NAME}.sounds: there is no folder {shown(self.sounds)}")
        return () if self.sounds is None else tuple(sorted(self.sounds.iterdir()))


@dataclass(frozen=True)
class DrawnClip:
    """A drawn clip as one of a file."""

    drawn: Clip
    side: int

    @property
    def frames(self) -> int:
        return len(self.drawn.mouth)

    @property
    def prompt(self) -> str:
        return self.drawn.caption

    @property
    def bucket(self) -> tuple[int, int]:
        return self.side, self.side

    def pictures(self, start: int, count: int) -> np.ndarray:
        return self.drawn.pictures(self.side, range(start, start + count))

    def sound(self) -> np.ndarray:
        """Its frame 1 goes with the first sample of the waveform, so silence goes with frame 0."""
        return np.pad(self.drawn.waveform, (FRAME_SAMPLES, 0))


class FaceClips(ClipGenerator):
    """Drawn talking heads."""

    name = NAME
    Settings = FaceSettings
    settings: FaceSettings

    def __len__(self) -> int:
        return self.settings.clips

    def clip(self, number: int) -> DrawnClip:
        settings = self.settings
        seed = settings.first + number
        waveform = load_waveform(self._files[seed % len(self._files)]) if self._files else None
        return DrawnClip(Clip.from_seed(seed, settings.frames, waveform), settings.side)

    def check(self) -> None:
        _ = self._files

    def identity(self) -> dict[str, Any]:
        settings = self.settings
        sounds = None if settings.sounds is None else NOT_HERE
        if settings.sounds is not None and settings.sounds.is_dir():
            sounds = digest([(path.name, stamp(path)) for path in settings.files])
        return {**settings.model_dump(mode="json"), "sounds": sounds}

    @classmethod
    def unseen(cls, seed: int) -> DrawnClip:
        return DrawnClip(Clip.from_seed(UNSEEN + seed, 1, np.zeros(0, np.float32)), UNSEEN_SIDE)

    @cached_property
    def _files(self) -> tuple[Path, ...]:
        return self.settings.files
