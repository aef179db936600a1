"""The parts of a face that move: eyes, brows, jaw and mouth, in head units (see `shapes`)."""

from __future__ import annotations

import numpy as np

from omniavatar_drawn.faces import palette
from omniavatar_drawn.faces.curves import Points, band, ellipse
from omniavatar_drawn.faces.identity import Identity
from omniavatar_drawn.faces.palette import darker, lighter
from omniavatar_drawn.faces.performance import Pose
from omniavatar_drawn.faces.shapes import Shape

MOUTH_Y = 0.7
MOUTH_HEIGHT = 0.56
MOUTH_HALF_WIDTH = (0.27, 0.52)
UPPER_LIP = 0.11
LOWER_LIP = 0.15
JAW_DROP = 0.16
_ACROSS = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 17))


def eyes(who: Identity, pose: Pose) -> list[Shape]:
    shapes: list[Shape] = []
    for side in (-1, 1):
        shapes += _eye(who, pose, side)
    return shapes


def _eye(who: Identity, pose: Pose, side: int) -> list[Shape]:
    """White, iris and pupil cut off by the lids, and the lashes along the upper lid."""
    x, width, height = side * 0.43 * who.eye_spacing, 0.215 * who.eye_size, 0.185 * who.eye_size
    woman = who.person == "woman"
    lash = band(_lid(x, width * (1.14 if woman else 1.04), height, pose.blink, up=True), 0.085 if woman else 0.06)
    lash_colour = (34, 26, 30)
    if pose.blink > 0.9:
        return [Shape(lash, lash_colour)]
    upper, lower = (_lid(x, width, height, pose.blink, up=up) for up in (True, False))
    centre = (x + 0.075 * pose.gaze_x, 0.03 + 0.06 * pose.gaze_y)
    radius = 0.142 * who.eye_size
    parts = ((radius, who.eyes.rgb), (radius * 0.56, palette.PUPIL))
    shapes = [Shape(np.concatenate([upper, lower[::-1]]), palette.EYE_WHITE)]
    for size, colour in parts:
        shapes.append(Shape(_between(ellipse(centre, (size, size), 20), upper, lower), colour))
    glint = ellipse((centre[0] - 0.05, centre[1] - 0.05), (0.035, 0.035), 8)
    return [*shapes, Shape(_between(glint, upper, lower), (255, 255, 255)), Shape(lash, lash_colour)]


def _lid(x: float, width: float, height: float, blink: float, *, up: bool) -> Points:
    """The edge of a lid from left to right; the upper one comes down as the eye closes."""
    arch = np.sqrt(1 - _ACROSS**2)
    y = (-height * (1 - 1.55 * blink) if up else height) * arch
    return np.stack([x + width * _ACROSS, 0.02 + y], axis=1)


def _between(points: Points, upper: Points, lower: Points) -> Points:
    """Push points that lie beyond two curves back onto them."""
    low = np.interp(points[:, 0], upper[:, 0], upper[:, 1])
    high = np.interp(points[:, 0], lower[:, 0], lower[:, 1])
    return np.stack([np.clip(points[:, 0], upper[0, 0], upper[-1, 0]), np.clip(points[:, 1], low, high)], axis=1)


def brows(who: Identity, pose: Pose) -> list[Shape]:
    y = -0.36 - 0.11 * pose.brow
    frown = max(0.0, -pose.brow)
    colour = darker(who.hair_colour.rgb, 0.25)
    arch = np.array([(0.18, y + 0.03 + 0.08 * frown), (0.4, y - 0.07), (0.56, y - 0.06), (0.7, y + 0.03)])
    line = np.stack([np.linspace(0.18, 0.7, 9), np.interp(np.linspace(0.18, 0.7, 9), arch[:, 0], arch[:, 1])], axis=1)
    shape = band(line * (who.eye_spacing, 1), 0.085 * who.brow_width)
    return [Shape(shape, colour), Shape(shape * (-1, 1), colour)]


def jaw(points: Points, opening: float) -> Points:
    """Where points of the lower face go when the mouth opens: down, the chin by JAW_DROP * opening."""
    below = np.clip((points[:, 1] - 0.45) / 0.75, 0, 1)
    drop = JAW_DROP * opening * below * below * (3 - 2 * below)
    return np.stack([points[:, 0], points[:, 1] + drop], axis=1)


def mouth(who: Identity, opening: float, width: float, smile: float) -> list[Shape]:
    """Lips, and between them when `opening` > 0 the dark inside with upper teeth and tongue.

    The inside is `opening` * MOUTH_HEIGHT high in its middle; from 0 to 1 `width` goes through MOUTH_HALF_WIDTH.
    """
    narrow, wide = MOUTH_HALF_WIDTH
    half = narrow + (wide - narrow) * width
    t = _ACROSS
    arch = np.sqrt(1 - t * t)
    x = half * t
    middle = MOUTH_Y + 0.1 * smile * (0.5 - t * t)
    gap = opening * MOUTH_HEIGHT
    top, bottom = middle - 0.2 * gap * arch, middle + 0.8 * gap * arch
    full = 1.0 if who.person == "woman" else 0.72
    bow = 0.1 * full * (0.95 - 0.25 * np.exp(-((t / 0.18) ** 2))) * arch**1.4 + 0.02 * arch
    lip, line = who.lips.rgb, darker(who.lips.rgb, 0.42)
    edge = 1.14 * x
    upper, lower = _strip(edge, top - bow, bottom), _strip(edge, middle, bottom + LOWER_LIP * full * arch**0.9)
    shapes = [Shape(upper, lip), Shape(lower, lighter(lip, 0.08))]
    if gap < 0.05:
        shapes.append(Shape(band(np.stack([1.06 * x, (top + bottom) / 2], axis=1), 0.045), line))
    if gap > 0:
        shapes += _inside(x, top, bottom)
    return shapes


def inside_parts(gap: float) -> tuple[float, float]:
    """Heights of the upper teeth and of the tongue in a mouth that is open by `gap`; the rest is dark."""
    return min(0.13, 0.5 * gap), float(np.clip(0.6 * gap - 0.12, 0, 0.17))


def _inside(x: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> list[Shape]:
    highest, tongue_height = inside_parts(float((bottom - top).max()))
    teeth = top + np.minimum(highest, 0.5 * (bottom - top))
    tongue = np.maximum(teeth, bottom.max() - tongue_height + 0.5 * x * x)
    return [
        Shape(_strip(x, top, bottom), palette.MOUTH_DARK),
        Shape(_strip(x, np.minimum(tongue, bottom), bottom), palette.TONGUE),
        Shape(_strip(0.9 * x, top, teeth), palette.TEETH),
    ]


def _strip(x: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> Points:
    """The area between two curves over the same x."""
    return np.concatenate([np.stack([x, top], axis=1), np.stack([x, bottom], axis=1)[::-1]])
