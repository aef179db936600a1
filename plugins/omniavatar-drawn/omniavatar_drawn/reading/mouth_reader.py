"""Reads opening and width of a mouth from pixels, by comparing them with what each opening and width would look like.

The opening needs no colour of lips or skin: the middle of the reference's lower face, one column of colours, is taken
apart where its lips meet, as opening the mouth does, and the inside is laid between. Softness of the frames and
the height of the line between the lips are found from the clip. So blur, noise and a tint hardly matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omniavatar.errors import InputError
from omniavatar_drawn.faces.features import (
    LOWER_LIP,
    MOUTH_HALF_WIDTH,
    MOUTH_HEIGHT,
    UPPER_LIP,
    inside_parts,
    jaw,
)
from omniavatar_drawn.faces.palette import MOUTH_DARK, TEETH, TONGUE, mix
from omniavatar_drawn.reading.alignment import Alignment, grid, sample

CHEEKS = np.concatenate([(part := grid(0.42, 0.39, 0.74, 0.52)).ravel(), -part.conj().ravel()])

_COLUMN = grid(-0.12, 0.42, 0.12, 1.5, 0.025)  # the middle of the face, from under the nose to below the chin
_HEIGHTS = _COLUMN[:, 0].imag
_OPENINGS = np.linspace(0, 1, 51)
_LINES = np.linspace(0.56, 0.88, 17)
_BLURS = (1, 4, 9, 18)
_SHIFTS = np.linspace(-0.09, 0.09, 7)
_SHIFT_COST = 2.0

_MOUTH = grid(-0.63, -0.2, 0.63, 0.5, 0.03)  # around the line between the lips
_LOWER_FACE = grid(-0.63, 0.45, 0.63, 1.38)
_WIDTHS = np.linspace(0, 1, 21)
_SMILES = np.linspace(-0.4, 1.2, 5)
_INSIDE = np.array([mix(MOUTH_DARK, TEETH, part) for part in (0, 0.25, 0.5, 0.75, 1)], np.float32)
_READABLE = 0.15


class MouthReader:
    """Reads the mouth of the face that `reference` (h w 3) shows, with its mouth closed, at `home`."""

    def __init__(self, reference: np.ndarray, home: Alignment) -> None:
        self._cheeks = sample(reference, home.pixels(CHEEKS)).mean(axis=0)
        self._outside = _outside_colours(sample(reference, home.pixels(_LOWER_FACE)))
        rest = self._column(reference, home)
        self._columns = np.concatenate([_blurs(expected_columns(rest, line)) for line in _LINES])

    def read(self, frames: np.ndarray, places: Sequence[Alignment]) -> tuple[np.ndarray, np.ndarray]:
        """Openings and widths (t) of a clip (t h w 3); the width is NaN where the mouth is nearly closed."""
        pairs = [(frame.astype(np.float32), place) for frame, place in zip(frames, places, strict=True)]
        openings, line = self._openings(np.stack([self._column(*pair) for pair in pairs]))
        widths = [
            self._width(*pair, opening, line) if opening > _READABLE else np.nan
            for pair, opening in zip(pairs, openings, strict=True)
        ]
        return openings, np.array(widths)

    def _openings(self, seen: np.ndarray) -> tuple[np.ndarray, float]:
        """The openings (t) whose expected columns are nearest to those seen (t rows 3), and where the lips meet.

        The clip has one line between the lips and one blur; each frame may be shifted a little against its alignment.
        """
        errors = np.stack([_squares(_moved_down(seen, shift), self._columns) for shift in _SHIFTS], axis=3)
        errors += _SHIFT_COST * (_SHIFTS / _SHIFTS[-1]) ** 2
        best = errors.min(axis=3)
        kind = int(best.min(axis=2).sum(axis=0).argmin())
        return np.array([_lowest(curve, _OPENINGS) for curve in best[:, kind]]), float(_LINES[kind // len(_BLURS)])

    def _width(self, picture: np.ndarray, place: Alignment, opening: float, line: float) -> float:
        """The width whose outline best covers what looks like the inside of the mouth, its tongue left out."""
        colours = sample(picture, place.pixels(_MOUTH + 1j * line)) - self._tint(picture, place)
        covered, telling = expected_insides(opening)
        errors = np.abs(covered - _insideness(colours, self._outside)) * telling
        return _lowest(errors.sum(axis=(2, 3)).min(axis=0), _WIDTHS)

    def _column(self, picture: np.ndarray, place: Alignment) -> np.ndarray:
        """The colours of the column (rows 3), without the picture's tint."""
        column = sample(picture, place.pixels(_COLUMN)).mean(axis=1)
        return _smoothed(column - self._tint(picture, place))

    def _tint(self, picture: np.ndarray, place: Alignment) -> np.ndarray:
        """How the cheeks differ from the reference's (3)."""
        tint: np.ndarray = sample(picture, place.pixels(CHEEKS)).mean(axis=0) - self._cheeks
        return tint


def expected_columns(rest: np.ndarray, line: float) -> np.ndarray:
    """What the column `rest` (rows 3) of a closed mouth becomes at each opening (openings rows 3).

    line: the height at which the lips meet. The lips part over the skin around them, the chin sinks, and between the
    lips appears the inside of the mouth.
    """
    y = _HEIGHTS
    columns = np.empty((len(_OPENINGS), *rest.shape), np.float32)
    for index, opening in enumerate(_OPENINGS):
        gap = opening * MOUTH_HEIGHT
        top, bottom = line - 0.2 * gap, line + 0.8 * gap
        sunk = jaw(np.stack([np.zeros_like(y), y], axis=1), opening)[:, 1]
        source = np.interp(y, sunk, y)
        source = np.where((y > top - UPPER_LIP) & (y <= top), y + line - top, source)
        source = np.where((y >= bottom) & (y < bottom + LOWER_LIP), y + line - bottom, source)
        outside = np.stack([np.interp(source, y, channel) for channel in rest.T], axis=1)
        columns[index] = _with_inside(outside, top, bottom)
    return columns


def expected_insides(opening: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the inside of a mouth is at each smile and width, and which points tell (smiles widths rows columns).

    Rows are heights below the line between closed lips. The tongue does not tell: some lips have its colour.
    """
    gap = opening * MOUTH_HEIGHT
    narrow, wide = MOUTH_HALF_WIDTH
    half = (narrow + (wide - narrow) * _WIDTHS)[:, None, None]
    t = np.clip(_MOUTH.real / half, -1, 1)
    arch = np.sqrt(1 - t * t)
    height = _MOUTH.imag + 0.1 * _SMILES[:, None, None, None] * t * t
    covered = (height > -0.2 * gap * arch) & (height < 0.8 * gap * arch) & (np.abs(_MOUTH.real) < half)
    tongue = (height > 0.8 * gap - inside_parts(gap)[1]) & (height < 0.8 * gap + 0.03)
    return covered.astype(np.float32), ~tongue


def _with_inside(column: np.ndarray, top: float, bottom: float) -> np.ndarray:
    """Lay teeth, dark and tongue over the stretch of a column between the lips."""
    step = _HEIGHTS[1] - _HEIGHTS[0]
    teeth, tongue = inside_parts(bottom - top)
    parts = ((top, bottom, MOUTH_DARK), (bottom - tongue, bottom, TONGUE), (top, top + teeth, TEETH))
    for start, stop, colour in parts:
        covered = np.clip((np.minimum(stop, _HEIGHTS + step / 2) - np.maximum(start, _HEIGHTS - step / 2)) / step, 0, 1)
        column = column + covered[:, None] * (np.array(colour) - column)
    return column


def _blurs(columns: np.ndarray) -> np.ndarray:
    """Columns (... rows 3) as frames of growing softness show them (blurs ... rows 3)."""
    return np.stack([_smoothed(columns, times) for times in _BLURS])


def _smoothed(columns: np.ndarray, times: int = 1) -> np.ndarray:
    """Columns (... rows 3) averaged with their neighbours (1 2 1), `times` times over."""
    for _ in range(times):
        padded = np.concatenate([columns[..., :1, :], columns, columns[..., -1:, :]], axis=-2)
        columns = (padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4
    return columns


def _moved_down(columns: np.ndarray, shift: float) -> np.ndarray:
    """Columns (t rows 3) as they would be seen if the face were `shift` higher."""
    rows = np.interp(_HEIGHTS + shift, _HEIGHTS, np.arange(len(_HEIGHTS)))
    low = np.minimum(rows.astype(int), len(_HEIGHTS) - 2)
    part = (rows - low)[:, None]
    moved: np.ndarray = columns[:, low] * (1 - part) + columns[:, low + 1] * part
    return moved


def _squares(seen: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Mean square differences (t kinds openings) of columns (t rows 3) and (kinds openings rows 3)."""
    a, b = seen.reshape(len(seen), -1), expected.reshape(*expected.shape[:2], -1)
    product = np.einsum("tn,kon->tko", a, b, optimize=True)
    result: np.ndarray = ((a * a).sum(1)[:, None, None] - 2 * product + (b * b).sum(2)) / a.shape[1]
    return result


def _lowest(errors: np.ndarray, values: np.ndarray) -> float:
    """The one of evenly spaced values with the lowest error, refined by the parabola through its neighbours."""
    index = int(errors.argmin())
    if index in (0, len(errors) - 1):
        return float(values[index])
    left, middle, right = errors[index - 1 : index + 2]
    bend = left - 2 * middle + right
    offset = 0.5 * (left - right) / bend if bend > 1e-9 else 0.0
    return float(values[index] + offset * (values[1] - values[0]))


def _insideness(colours: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """How much colours (... 3) are those of the inside of a mouth (1) rather than `outside` (n 3) of it (0)."""
    inside: np.ndarray = np.clip(0.5 + (_nearest(colours, outside) - _nearest(colours, _INSIDE)) / 50, 0, 1)
    return inside


def _outside_colours(patch: np.ndarray, count: int = 24) -> np.ndarray:
    """The colours (n 3) around a mouth: those most unlike each other, without those of its inside should it be open."""
    colours = patch.reshape(-1, 3)
    colours = colours[_nearest(colours, _INSIDE) > 28]
    if len(colours) == 0:
        raise InputError("the reference picture shows no face of the procedural kind in its middle; give one that does")
    chosen = [np.median(colours, axis=0)]
    for _ in range(count - 1):
        chosen.append(colours[_nearest(colours, np.array(chosen)).argmax()])
    return np.array(chosen)


def _nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The distance of colours (... 3) from the nearest of a palette (n 3)."""
    distances: np.ndarray = np.linalg.norm(colours[..., None, :] - palette, axis=-1).min(axis=-1)
    return distances
