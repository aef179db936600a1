"""The metrics of packages, asked of the videos of one combination of units."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omniavatar.bench.probe import Made
from omniavatar.bench.record import Measured, Spread
from omniavatar.errors import InputError
from omniavatar.media.audio import load_waveform
from omniavatar.media.image import fit_image, load_image
from omniavatar.metrics import SAMPLE_RATE, MadeVideo, Metric

log = logging.getLogger(__name__)
Metrics = Mapping[str, Sequence[Metric]]
"""By the package that brings them."""


class Asking:
    """All metrics for one call of `omni bench`.

    One that goes wrong is not asked again; `faults` says of which package it is and why.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.faults: dict[tuple[str, str], str] = {}

    def numbers(self, video: MadeVideo) -> dict[tuple[str, str], float]:
        """What is measured of a video, by package and name."""
        found = {}
        for package, metrics in self.metrics.items():
            for metric in metrics:
                if (package, metric.name) not in self.faults:
                    number = self._asked(package, metric, video)
                    if number is not None:
                        found[package, metric.name] = number
        return found

    def measured(self, videos: Sequence[Mapping[tuple[str, str], float]]) -> tuple[Measured, ...]:
        """The numbers of several videos as they are written down."""
        found = []
        for package, metrics in self.metrics.items():
            for metric in metrics:
                key = (package, metric.name)
                values = [numbers[key] for numbers in videos if key in numbers]
                if values and key not in self.faults:
                    found.append(
                        Measured(
                            name=metric.name,
                            package=package,
                            heading=metric.heading,
                            description=metric.description,
                            better=metric.better,
                            tolerance=metric.tolerance,
                            values=Spread.of(values),
                        )
                    )
        return tuple(found)

    def _asked(self, package: str, metric: Metric, video: MadeVideo) -> float | None:
        try:
            return metric.of(video)
        except Exception as error:
            log.info("metric %s of %s", metric.name, package, exc_info=True)
            self.faults[package, metric.name] = " ".join(f"{type(error).__name__}: {error}".split())
            return None


def video_of(
    made: Made, inputs: Mapping[str, Any], fps: int, reference: Made | None, generator: str | None
) -> MadeVideo | None:
    """A made video as metrics get it; None without pictures."""
    frames = made.frames
    if frames is None:
        return None
    is_comparable = reference is not None and reference.frames is not None and reference.frames.shape == frames.shape
    image, audio = inputs.get("image"), inputs.get("audio")
    return MadeVideo(
        frames=frames,
        fps=fps,
        portrait=None if image is None else portrait(image, made.size),
        sound=None if audio is None else heard(audio, made.silence + 1 / fps),
        prompt=inputs.get("prompt") or "",
        reference=reference.frames if reference is not None and is_comparable else None,
        chunk_starts=made.borders,
        generator=generator,
    )


def portrait(image: Any, size: tuple[int, int]) -> np.ndarray | None:
    """The given picture as the video's frame 0 shows it (h w 3) uint8; None where it is none."""
    try:
        fitted = fit_image(load_image(image), size)
    except InputError:
        return None
    return ((fitted[0].movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def heard(audio: Path | tuple[np.ndarray, int], delay: float) -> np.ndarray | None:
    """The sound (n,) float32 at 16 kHz behind so many seconds of silence; None where it is none."""
    try:
        wave = load_waveform(audio, SAMPLE_RATE)
    except InputError:
        return None
    return np.concatenate([np.zeros(round(delay * SAMPLE_RATE), np.float32), wave])
