"""Reads talking faces from pixels alone: the mouth, the place of the head, its likeness and its colours.

It knows the style of the procedural faces (where a mouth is in a face, the colours inside one), not who is shown; what
is particular to a face comes from one reference picture. The same functions read drawn and generated frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omniavatar.errors import InputError
from omniavatar.media.similarity import luma, ssim_map
from omniavatar_drawn.reading.alignment import Alignment, Tracker, grid, sample, still_parts
from omniavatar_drawn.reading.mouth_reader import CHEEKS, MouthReader

REGIONS = ("skin", "hair", "clothes", "background")

_CROWN = grid(-0.4, -1.2, 0.4, -0.98).ravel()


@dataclass(frozen=True)
class Reading:
    """What is seen in the t frames of a clip.

    opening (t) 0..1; width (t) 0..1, NaN while the mouth is nearly closed; likeness (t): SSIM with the reference, mouth
    and eyes left out; colours (t 4 3) 0..1: means of REGIONS, with reference_colours (4 3) to compare.
    """

    opening: np.ndarray
    width: np.ndarray
    likeness: np.ndarray
    colours: np.ndarray
    reference_colours: np.ndarray
    alignments: tuple[Alignment, ...]

    @property
    def colour_shift(self) -> np.ndarray:
        """How far the mean colours are from the reference's: the largest channel's difference (t 4)."""
        shift: np.ndarray = np.abs(self.colours - self.reference_colours).max(axis=2)
        return shift


class Detector:
    """Reads frames of the clip that `reference` (h w 3) uint8 belongs to: square, eyes open, mouth closed."""

    def __init__(self, reference: np.ndarray) -> None:
        _check(reference)
        self._reference = reference.astype(np.float32)
        self._tracker = Tracker(reference)
        self.home = self._tracker.reference
        self._mouth = MouthReader(self._reference, self.home)

    def read(self, frames: np.ndarray) -> Reading:
        """frames: (t h w 3) uint8 of the reference's size, in order, at least one."""
        if len(frames) == 0:
            raise InputError("a clip without frames cannot be read; give at least one")
        places: list[Alignment] = []
        for frame in frames:
            _check(frame, self._reference.shape)
            places.append(self._tracker.align(frame, places[-1] if places else None))
        opening, width = self._mouth.read(frames, places)
        return Reading(
            opening=opening,
            width=width,
            likeness=np.array([self.likeness(frame, place) for frame, place in zip(frames, places, strict=True)]),
            colours=np.stack([region_colours(frame, place) for frame, place in zip(frames, places, strict=True)]),
            reference_colours=region_colours(self._reference, self.home),
            alignments=tuple(places),
        )

    def likeness(self, frame: np.ndarray, place: Alignment) -> float:
        """SSIM with the reference of the face brought to its place, without eyes, brows, mouth and chin."""
        side = self.home.side
        points = self.home.points(np.arange(side)[None, :] + 1j * np.arange(side)[:, None])
        aligned = sample(frame.astype(np.float32), place.pixels(points))
        return float(ssim_map(luma(aligned), luma(self._reference))[still_parts(points, margin=-0.06)].mean())


def read_clip(frames: np.ndarray, reference: np.ndarray | None = None) -> Reading:
    """Read a clip (t h w 3) uint8; the reference is its first frame by default."""
    if len(frames) == 0:
        raise InputError("a clip without frames cannot be read; give at least one")
    return Detector(frames[0] if reference is None else reference).read(frames)


def region_colours(picture: np.ndarray, place: Alignment) -> np.ndarray:
    """Mean colours (4 3) in 0..1 of REGIONS: cheeks, crown of the head, foot of the picture, its two upper corners.

    They are places, not materials: a bald head's "hair" is its skin. Compare the same places of two pictures.
    """
    height, width = picture.shape[:2]
    clothes = picture[round(0.88 * height) :, round(0.2 * width) : round(0.8 * width)]
    wall = picture[: round(0.25 * height)]
    corners = np.concatenate([wall[:, : round(0.12 * width)], wall[:, round(0.88 * width) :]], axis=1)
    on_head = [sample(picture.astype(np.float32), place.pixels(points)) for points in (CHEEKS, _CROWN)]
    return np.stack([part.reshape(-1, 3).mean(axis=0) for part in (*on_head, clothes, corners)]) / 255


def correlation(measured: np.ndarray, truth: np.ndarray, lag: int = 0) -> float:
    """Pearson's correlation of two curves (t), 0 if one is flat; lag > 0: what is measured comes that much later."""
    end = len(truth) - abs(lag)
    late, early = measured[max(0, lag) :][:end], truth[max(0, -lag) :][:end]
    if late.std() < 1e-6 or early.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(late, early)[0, 1])


def best_lag(measured: np.ndarray, truth: np.ndarray, most: int = 5) -> int:
    """The lag in frames within +-`most` with the highest correlation."""
    return max(range(-most, most + 1), key=lambda lag: correlation(measured, truth, lag))


def _check(picture: np.ndarray, shape: tuple[int, ...] | None = None) -> None:
    wanted = shape or (picture.shape[0], picture.shape[0], 3)
    if picture.shape != wanted:
        raise InputError(f"a frame has the shape {picture.shape}; the detector reads {wanted}")
