"""How good a video of a procedural talking head is, in figures from its pixels and from the truth about its sound.

    reading = Detector(picture).read(frames)                 # the picture is the video's frame 0
    truth = mouth_frames(sound as the video plays it, len(frames))
    synchrony([Spoken(reading, truth)]).correlation

Frame 0 is the given picture and counts in no figure. Nothing here knows how a video was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omniavatar.errors import InputError
from omniavatar_drawn.faces.mouth import FPS
from omniavatar_drawn.faces.palette import Colour, distance
from omniavatar_drawn.faces.renderer import HALF_WIDTH, HEAD_CENTRE
from omniavatar_drawn.reading.alignment import Alignment
from omniavatar_drawn.reading.detector import REGIONS, Reading, correlation, region_colours

MOST_LAG = 5
"""Frames; lags beyond are not looked for."""
DEEP = 4
"""Frames between deep silence and the nearest open mouth: what is merely late is not open in silence."""
_OPEN = 0.05
_WIDE_ENOUGH = 0.15
_UNSEEN = 0.25 / 255
"""A quarter of a grey level: smaller differences of frames are none."""


@dataclass(frozen=True)
class Spoken:
    """What is seen of a mouth and what is true of it: opening and width (t 2), as of `mouth.mouth_frames`."""

    reading: Reading
    truth: np.ndarray

    def __post_init__(self) -> None:
        seen, true = len(self.reading.opening), len(self.truth)
        if seen != true or true <= 2 * MOST_LAG:
            least = 2 * MOST_LAG + 1
            raise InputError(f"{seen} frames and a truth of {true}; both need the same number, at least {least}")

    @property
    def correlations(self) -> np.ndarray:
        """Of the opening with the truth, at the lags -MOST_LAG to MOST_LAG (positive: the mouth is late)."""
        seen, true = self.reading.opening[1:], self.truth[1:, 0]
        return np.array([correlation(seen, true, lag) for lag in range(-MOST_LAG, MOST_LAG + 1)])

    @property
    def is_speech(self) -> np.ndarray:
        """Frames (t) in which the truth is an open mouth."""
        speech: np.ndarray = self.truth[:, 0] > _OPEN
        return speech

    @property
    def is_silence(self) -> np.ndarray:
        """Frames (t) of deep silence: no open mouth within DEEP frames; not frame 0."""
        near = np.convolve(self.truth[:, 0] > 0, np.ones(2 * DEEP + 1), mode="same") > 0
        near[0] = True
        return ~near

    def width_correlation(self, lag: int = 0) -> float:
        """Of the width with the truth, where the mouth is open enough to have one; NaN if that is hardly ever."""
        start, stop = max(0, lag), len(self.truth) + min(0, lag)
        seen = self.reading.width[start:stop]
        true = self.truth[start - lag : stop - lag]
        both = np.isfinite(seen) & (true[:, 0] > _WIDE_ENOUGH)
        return correlation(seen[both], true[both, 1]) if both.sum() >= 8 else float("nan")


@dataclass(frozen=True)
class Synchrony:
    """How mouths follow their sounds: the lag in frames at which they do best on the whole (positive: they are late),
    the mean correlation there, and each video's."""

    lag: int
    correlation: float
    each: tuple[float, ...]


def synchrony(videos: Sequence[Spoken]) -> Synchrony:
    """One lag for all videos, since what delays a mouth (the sound's path, the rows of frames) delays all alike."""
    curves = np.stack([video.correlations for video in videos])
    best = int(curves.mean(axis=0).argmax())
    return Synchrony(best - MOST_LAG, float(curves[:, best].mean()), tuple(map(float, curves[:, best])))


def mean_opening(videos: Iterable[Spoken]) -> float:
    """What is seen in speech, over all frames of all videos; NaN without any."""
    return _mean(video.reading.opening[video.is_speech] for video in videos)


def opening_in_silence(videos: Sequence[Spoken]) -> float:
    """Mean opening in deep silence as a share of that in speech, over all frames of all videos; NaN without silence."""
    silence = _mean(video.reading.opening[video.is_silence] for video in videos)
    return silence / max(mean_opening(videos), 1e-6)


def colour_shifts(reading: Reading) -> dict[str, float]:
    """How far the mean colours of a video's frames are from the picture's, 0 to 1, by region."""
    return dict(zip(REGIONS, map(float, reading.colour_shift[1:].mean(axis=0)), strict=True))


def likeness(reading: Reading) -> float:
    """SSIM of the aligned face with the picture's, mouth and eyes left out: the mean over a video's frames."""
    return float(reading.likeness[1:].mean())


def drift(reading: Reading, frames: int = FPS) -> dict[str, float]:
    """How far the last second (`frames`) is from the first: colours by region (largest channel), and "likeness"."""
    if len(reading.opening) < 2 * frames + 1:
        raise InputError(f"a video of {len(reading.opening)} frames has no drift over {frames}; make it longer")
    first, last = slice(1, 1 + frames), slice(-frames, None)
    colours = np.abs(reading.colours[last].mean(axis=0) - reading.colours[first].mean(axis=0)).max(axis=1)
    change = abs(reading.likeness[last].mean() - reading.likeness[first].mean())
    return {**dict(zip(REGIONS, map(float, colours), strict=True)), "likeness": float(change)}


def border_jumps(frames: np.ndarray, borders: Sequence[int], home: Alignment | None = None) -> np.ndarray:
    """How much more a video (t h w 3) changes at the first frames of its chunks than usually: one ratio for each.

    borders: the numbers of those frames, without 0. Change: the mean absolute difference from the frame before; with
    `home`, where the face is, outside eyes and mouth, which move in bursts: a mouth that opens at a border is no jump.
    Usual: the mean over all other frames, at least a quarter of a grey level.
    """
    if not borders:
        return np.zeros(0)
    counted = np.ones(frames.shape[1:3], bool) if home is None else _outside_eyes_and_mouth(home)
    changes = np.array([_change(frames[n - 1][counted], frames[n][counted]) for n in range(1, len(frames))])
    at_borders = np.array(borders) - 1
    usual = np.delete(changes, at_borders).mean()
    ratios: np.ndarray = changes[at_borders] / max(float(usual), _UNSEEN)
    return ratios


def head_motion(reading: Reading) -> float:
    """How much a head moves: its mean distance (root mean square) from its mean place, in picture sides."""
    places = np.array([(place.x, place.y) for place in reading.alignments[1:]])
    return float(np.sqrt(((places - places.mean(axis=0)) ** 2).sum(axis=1).mean()))


def scene_colours(frames: np.ndarray) -> dict[str, Colour]:
    """Mean colours 0..255 of clothes and background of a video (t h w 3), of whoever it shows: no picture is needed."""
    side = frames.shape[1]
    rest = Alignment(complex(*HEAD_CENTRE) * side, complex(HALF_WIDTH * side), side)
    means = np.mean([region_colours(frame, rest) for frame in frames], axis=0) * 255
    colours: dict[str, Colour] = {}
    for region, (red, green, blue) in zip(REGIONS, means.round().astype(int).tolist(), strict=True):
        colours[region] = (red, green, blue)
    return {region: colours[region] for region in ("clothes", "background")}


def nearest_colour(colour: Colour, palette: Mapping[str, Colour]) -> str:
    """The name of the colour of a palette that is nearest in RGB."""
    return min(palette, key=lambda name: distance(colour, palette[name]))


def _mean(parts: Iterable[np.ndarray]) -> float:
    values = np.concatenate([*parts, np.zeros(0)])
    return float(values.mean()) if values.size else float("nan")


def _change(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(after.astype(np.float32) - before).mean() / 255)


def _outside_eyes_and_mouth(home: Alignment) -> np.ndarray:
    """The pixels (side side) of a picture that neither lids nor lips and chin reach."""
    side = home.side
    points = home.points(np.arange(side)[None, :] + 1j * np.arange(side)[:, None])
    x, y = np.abs(points.real), points.imag
    eyes = (x < 0.85) & (y > -0.7) & (y < 0.3)
    mouth = (x < 0.8) & (y > 0.42) & (y < 1.7)
    outside: np.ndarray = ~eyes & ~mouth
    return outside
