"""Procedural talking heads as inputs, and what the detector of their style reads from the videos made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omniavatar.bench.probe import Made
from omniavatar.bench.record import Avatar, Spread
from omniavatar.errors import InputError
from omniavatar.media.audio import load_waveform
from omniavatar.media.image import fit_image, load_image
from omniavatar.training.faces.clips import Clip
from omniavatar.training.faces.mouth import FPS, SAMPLE_RATE, mouth_frames
from omniavatar.training.reading import quality
from omniavatar.training.reading.detector import Detector, Reading
from omniavatar.training.reading.quality import Spoken

UNSEEN = 9_000_000
"""No network was trained on faces from this number on."""
SIDE = 256


def face_inputs(seed: int, folder: Path) -> dict[str, Any]:
    """Picture (a file in the folder) and prompt of talking head UNSEEN + seed."""
    clip = Clip.from_seed(UNSEEN + seed, 1, np.zeros(0, np.float32))
    path = folder / f"face-{seed}.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(clip.pictures(SIDE)[0]).save(path)
    return {"image": path, "prompt": clip.caption}


@dataclass
class Readings:
    """The videos of one combination, read one by one."""

    readings: list[Reading] = field(default_factory=list)
    spoken: list[Spoken] = field(default_factory=list)
    jumps: list[float] = field(default_factory=list)
    drifts: list[float] = field(default_factory=list)

    def add(self, made: Made, inputs: dict[str, Any], fps: int) -> None:
        """Read a video. Nothing is added where there are no pictures, or none that the detector can read."""
        if made.frames is None or "image" not in inputs or fps != FPS:
            return
        try:
            detector = Detector(reference(inputs["image"], made.size))
            reading = detector.read(made.frames)
        except InputError:
            return
        self.readings.append(reading)
        if len(made.frames) > 2 * quality.MOST_LAG + 1 and inputs.get("audio") is not None:
            self.spoken.append(Spoken(reading, truth(inputs["audio"], made.silence, len(made.frames))))
        jumps = quality.border_jumps(made.frames, made.borders, detector.home)
        self.jumps += [float(jumps.max())] if jumps.size else []
        if len(made.frames) >= 2 * FPS + 1:
            self.drifts.append(max(quality.drift(reading).values()))

    def avatar(self) -> Avatar | None:
        """None if nothing could be read."""
        if not self.readings:
            return None
        heard = [spoken for spoken in self.spoken if spoken.truth[:, 0].any()]
        sync = quality.synchrony(heard) if heard else None
        return Avatar(
            mouth_correlation=spread(sync.each) if sync else None,
            mouth_lag=sync.lag if sync else None,
            identity_ssim=Spread.of([quality.likeness(reading) for reading in self.readings]),
            border_jump=spread(self.jumps),
            drift=spread(self.drifts),
        )


def reference(image: Path | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The given picture as the video's frame 0 shows it (h w 3) uint8."""
    fitted = fit_image(load_image(image), size)
    return ((fitted[0].movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def truth(sound: Path | np.ndarray, silence: float, frames: int) -> np.ndarray:
    """Opening and width of the mouth (frames 2) for a sound with that many seconds of silence in front."""
    wave = load_waveform(sound, SAMPLE_RATE)
    return mouth_frames(np.concatenate([np.zeros(round(silence * SAMPLE_RATE), np.float32), wave]), frames)


def spread(values: Sequence[float]) -> Spread | None:
    """None without a number."""
    numbers = [value for value in values if math.isfinite(value)]
    return Spread.of(numbers) if numbers else None
