"""Where a face is: found in one picture by its eyes, then followed through a clip by registration to that picture.

A point q of the face, in head units as a complex number (see `faces.shapes`), lies at the pixel centre + scale * q,
where the complex `scale` carries size and turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omniavatar.media.similarity import blurred
from omniavatar_drawn.faces.renderer import HALF_WIDTH, HEAD_CENTRE


@dataclass(frozen=True)
class Alignment:
    """The similarity that puts head units into a picture of height `side`, in pixels."""

    centre: complex
    scale: complex
    side: int

    @property
    def x(self) -> float:
        """The head's middle as a fraction of the picture's width."""
        return (self.centre.real + 0.5) / self.side

    @property
    def y(self) -> float:
        return (self.centre.imag + 0.5) / self.side

    @property
    def half_width(self) -> float:
        """Half the head's width as a fraction of the picture's."""
        return abs(self.scale) / self.side

    @property
    def degrees(self) -> float:
        """Clockwise."""
        return float(np.degrees(np.angle(self.scale)))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the face, hair left out, as fractions of the picture."""
        return (
            self.x - self.half_width,
            self.y - 1.15 * self.half_width,
            self.x + self.half_width,
            self.y + 1.25 * self.half_width,
        )

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Complex pixel coordinates of complex head points; pixel 0 has its middle at 0."""
        return self.centre + self.scale * points

    def points(self, pixels: np.ndarray) -> np.ndarray:
        return (pixels - self.centre) / self.scale


def grid(left: float, top: float, right: float, bottom: float, step: float = 0.035) -> np.ndarray:
    """Evenly spaced head points (rows columns), complex."""
    x = np.linspace(left, right, round((right - left) / step) + 1)
    y = np.linspace(top, bottom, round((bottom - top) / step) + 1)
    return x[None, :] + 1j * y[:, None]


def sample(picture: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The picture (h w c) at complex pixel coordinates (...), bilinear, edges repeated: (... c)."""
    height, width = picture.shape[:2]
    x, y = np.clip(pixels.real, 0, width - 1.001), np.clip(pixels.imag, 0, height - 1.001)
    column, row = x.astype(np.intp), y.astype(np.intp)
    dx, dy = (x - column)[..., None], (y - row)[..., None]
    flat, index = picture.reshape(height * width, -1), row * width + column
    upper = flat[index] * (1 - dx) + flat[index + 1] * dx
    lower = flat[index + width] * (1 - dx) + flat[index + width + 1] * dx
    result: np.ndarray = upper * (1 - dy) + lower * dy
    return result


def locate_face(picture: np.ndarray) -> Alignment:
    """The face of one picture (h w 3) in 0..255 with open eyes: where two white eyes stand out above red lips.

    Looks at every place, size and turn that the renderer's heads take, to within about 2 % of the picture's side.
    """
    side = picture.shape[0]
    colours = picture.astype(np.float32)
    cues = np.stack([colours.min(axis=2), colours[..., 0] - colours[..., 1]], axis=2)
    cues = blurred(cues, side / 128)
    x, y = np.arange(-0.048, 0.049, 0.008), np.arange(-0.04, 0.041, 0.008)
    centres = (complex(*HEAD_CENTRE) + x[None, :] + 1j * y[:, None]).ravel() * side - (0.5 + 0.5j)
    best, found = -np.inf, Alignment(0j, 1 + 0j, side)
    for size in (0.92, 0.96, 1.0, 1.04, 1.08):
        for degrees in (-4, 0, 4):
            scale = complex(size * HALF_WIDTH * side * np.exp(1j * np.radians(degrees)))
            score = _face_score(cues, centres, scale)
            if score.max() > best:
                best, found = float(score.max()), Alignment(complex(centres[score.argmax()]), scale, side)
    return found


_EYES = np.array([0.26 + 0.04j, 0.6 + 0.04j, 0.29 + 0.12j, 0.57 + 0.12j, 0.3 - 0.05j, 0.56 - 0.05j])
_PUPILS = np.array([0.43 + 0.03j, -0.43 + 0.03j, 0.43 - 0.17j, -0.43 - 0.17j])
_AROUND = np.array([0.43 + 0.41j, 0.6 + 0.39j, 0.27 + 0.4j, 0.5 + 0.54j, 0.36 + 0.5j])
_BRIDGE = np.array([0.08j, 0.16j])
_LIPS = np.array([0.7j, 0.1 + 0.7j, -0.1 + 0.7j, 0.2 + 0.7j, -0.2 + 0.7j, 0.1 + 0.76j, -0.1 + 0.76j])


def _face_score(cues: np.ndarray, centres: np.ndarray, scale: complex) -> np.ndarray:
    """How much each of the places `centres` (n) looks like a face of this scale (n).

    cues (h w 2): the darkest channel, bright in the white of an eye only, and red minus green.
    """

    def look(points: np.ndarray) -> np.ndarray:
        return sample(cues, centres[:, None] + scale * points)

    right, left = (look(points)[..., 0].mean(1) for points in (_EYES, -_EYES.conj()))
    around = look(np.concatenate([_AROUND, -_AROUND.conj(), _BRIDGE]))
    skin = around[..., 0]
    pupils, lips = look(_PUPILS)[..., 0].mean(1), look(_LIPS)[..., 1].mean(1)
    eyes = np.minimum(left, right) - skin.max(1) - 0.5 * skin.std(1) - 0.5 * pupils
    score: np.ndarray = eyes + lips - np.median(around[..., 1], axis=1)
    return score


class Tracker:
    """Follows the face of a reference picture (h w 3) through other pictures of the same clip.

    Least squares over the similarities of the plane by inverse composition (Baker and Matthews 2004), robust against
    what does not move with the head, blind to a change of the mean colour.
    """

    def __init__(self, reference: np.ndarray) -> None:
        self.reference = locate_face(reference)
        points = grid(-1.1, -1.3, 1.1, 1.0)
        self._points = points[still_parts(points)]
        self._blur = reference.shape[0] / 128
        smooth = blurred(reference.astype(np.float32), self._blur)
        self._template = sample(smooth, self.reference.pixels(self._points))
        self._steepest = self._derivatives(smooth)

    def align(self, picture: np.ndarray, start: Alignment | None = None) -> Alignment:
        """The face in `picture`, searched from `start` (the frame before; the reference by default)."""
        smooth = blurred(picture.astype(np.float32), self._blur)
        current = start or self.reference
        for _ in range(12):
            difference = sample(smooth, current.pixels(self._points)) - self._template
            difference -= np.median(difference, axis=0)
            spread = max(2.0, 1.5 * float(np.median(np.abs(difference))))
            weight = 1 / (1 + (difference / (3 * spread)) ** 2)
            matrix = np.einsum("pck,pc,pcl->kl", self._steepest, weight, self._steepest)
            vector = np.einsum("pck,pc->k", self._steepest, weight * difference)
            a, b, x, y = np.linalg.solve(matrix + 1e-3 * np.eye(4), vector)
            scale = current.scale / (1 + complex(a, b))
            current = Alignment(current.centre - scale * complex(x, y), scale, current.side)
            if abs(complex(x, y)) + abs(complex(a, b)) < 2e-4:
                break
        return current

    def _derivatives(self, smooth: np.ndarray) -> np.ndarray:
        """How the template changes when its points grow, turn, and move right and down: (points channels 4)."""
        step = 0.02

        def slope(direction: complex) -> np.ndarray:
            ahead = sample(smooth, self.reference.pixels(self._points + step * direction))
            behind = sample(smooth, self.reference.pixels(self._points - step * direction))
            change: np.ndarray = (ahead - behind) / (2 * step)
            return change

        right, down = slope(1), slope(1j)
        x, y = self._points.real[:, None], self._points.imag[:, None]
        return np.stack([right * x + down * y, down * x - right * y, right, down], axis=2)


def still_parts(points: np.ndarray, margin: float = 0.12) -> np.ndarray:
    """Which head points belong to the face, but neither to the eyes and brows nor to the mouth and chin.

    margin: how far the face reaches beyond its middle outline.
    """
    x, y = np.abs(points.real), points.imag
    inside = (x / (1 + margin)) ** 2 + (y / (1.15 + margin)) ** 2 < 1
    eyes = (x < 0.8) & (x > 0.1) & (y > -0.64) & (y < 0.3)
    mouth = (y > 0.42) & (x < 0.75)
    result: np.ndarray = inside & ~eyes & ~mouth & (y < 0.7)
    return result
