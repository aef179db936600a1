"""What the detector of the drawn style reads from videos of drawn faces: the metrics of `omni bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from omniavatar.errors import InputError
from omniavatar.metrics import MadeVideo, Metric
from omniavatar_drawn.faces.mouth import FPS, SAMPLE_RATE, mouth_frames
from omniavatar_drawn.generator import NAME
from omniavatar_drawn.reading import quality
from omniavatar_drawn.reading.detector import Detector, Reading
from omniavatar_drawn.reading.quality import Spoken, Synchrony


@dataclass(frozen=True)
class Seen:
    """A video that the detector could read, and where its face is at the beginning."""

    reading: Reading
    detector: Detector


def seen(video: MadeVideo) -> Seen | None:
    """The video, read once for all metrics; None where it shows no face of ours, or none that can be read."""
    return video.once("omniavatar_drawn", lambda: read(video))


def read(video: MadeVideo) -> Seen | None:
    if video.generator != NAME or video.portrait is None or video.fps != FPS:
        return None
    try:
        detector = Detector(video.portrait)
        return Seen(detector.read(video.frames), detector)
    except InputError:
        return None


def synchrony(video: MadeVideo) -> Synchrony | None:
    """How the mouth follows the sound, at the lag that is best for this video; None if that cannot be told."""
    found = seen(video)
    if found is None or video.sound is None or len(video.frames) <= 2 * quality.MOST_LAG + 1:
        return None
    truth = mouth_frames(video.sound[SAMPLE_RATE // FPS :], len(video.frames))
    return quality.synchrony([Spoken(found.reading, truth)]) if truth[:, 0].any() else None


def correlation(video: MadeVideo) -> float | None:
    sync = synchrony(video)
    return None if sync is None else sync.correlation


def lag(video: MadeVideo) -> float | None:
    sync = synchrony(video)
    return None if sync is None else float(sync.lag)


def of_reading(figure: Callable[[Reading], float]) -> Callable[[MadeVideo], float | None]:
    """A metric that needs the reading alone."""

    def measure(video: MadeVideo) -> float | None:
        found = seen(video)
        return None if found is None else figure(found.reading)

    return measure


def border_jump(video: MadeVideo) -> float | None:
    found = seen(video)
    if found is None or not video.chunk_starts:
        return None
    jumps = quality.border_jumps(video.frames, video.chunk_starts, found.detector.home)
    return float(np.max(jumps)) if jumps.size else None


def drift(reading: Reading) -> float:
    """NaN for a video that is too short to have a first and a last second."""
    return max(quality.drift(reading).values()) if len(reading.opening) >= 2 * FPS + 1 else float("nan")


METRICS = (
    Metric(
        "mouth-correlation",
        "correlation of the mouth's opening with the one that the sound asks for, at the best lag of the video",
        correlation,
        needs=("portrait", "sound"),
        label="mouth",
    ),
    Metric(
        "mouth-lag",
        "that lag; above 0 the mouth is late",
        lag,
        needs=("portrait", "sound"),
        better=None,
        unit="frames",
        label="lag",
    ),
    Metric(
        "identity-ssim",
        "SSIM of the face with the portrait's, without mouth and eyes",
        of_reading(quality.likeness),
        needs=("portrait",),
        label="identity",
    ),
    Metric(
        "border-jump",
        "change at the first frame of a chunk as a multiple of the usual change, the largest of a video",
        border_jump,
        needs=("portrait",),
        better="lower",
        label="border",
    ),
    Metric(
        "drift",
        "change of colours (0..1) or likeness from the first second to the last, the larger; from 2.04 s on",
        of_reading(drift),
        needs=("portrait",),
        better="lower",
        label="drift",
    ),
)
