"""Curves as arrays of points (n 2), x to the right and y down, and the affine maps (2 3) that move them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Points = np.ndarray
Matrix = np.ndarray


def spline(points: Sequence[tuple[float, float]] | Points, *, closed: bool = True, steps: int = 6) -> Points:
    """A smooth curve through `points` (Catmull-Rom), `steps` samples for each stretch between two of them."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    before, start, end, after = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    t = (np.arange(steps) / steps)[None, :, None]
    curve = start + t / 2 * (
        (end - before) + t * (2 * before - 5 * start + 4 * end - after) + t * t * (3 * (start - end) + after - before)
    )
    flat = curve.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, p[-2:-1]])


def mirrored(right: Sequence[tuple[float, float]]) -> Points:
    """Both halves of a symmetric outline from its right half (x >= 0), given from the top down."""
    half = np.asarray(right, float)
    left = half[::-1] * (-1, 1)
    return np.concatenate([half, left[left[:, 0] < 0]])


def ellipse(centre: tuple[float, float], radii: tuple[float, float], points: int = 28) -> Points:
    angle = np.arange(points) * (2 * np.pi / points)
    return np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], axis=1)


def ring(centre: tuple[float, float], radii: tuple[float, float], width: float, points: int = 28) -> Points:
    """The outline, `width` thick, of an ellipse, as one polygon with a seam."""
    outer = ellipse(centre, (radii[0] + width / 2, radii[1] + width / 2), points)
    inner = ellipse(centre, (radii[0] - width / 2, radii[1] - width / 2), points)
    return np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])


def frame_of(outline: Points, width: float) -> Points:
    """A band of `width` along the inside of a convex closed curve, as one polygon with a seam."""
    centre = outline.mean(axis=0)
    offset = outline - centre
    inner = centre + offset * (1 - width / np.linalg.norm(offset, axis=1, keepdims=True))
    return np.concatenate([outline, outline[:1], inner[:1], inner[::-1]])


def band(line: Points, width: float) -> Points:
    """A line (n 2) drawn `width` thick and tapered at both ends."""
    direction = np.gradient(line, axis=0)
    normal = np.stack([-direction[:, 1], direction[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    taper = np.sin(np.linspace(0.25, np.pi - 0.25, len(line)))[:, None]
    half = normal * taper * width / 2
    return np.concatenate([line + half, (line - half)[::-1]])


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def scaled(points: Points, x: float, y: float, about: tuple[float, float] = (0.0, 0.0)) -> Points:
    return (points - about) * (x, y) + about


def placement(x: float, y: float, scale: float, degrees: float = 0.0) -> Matrix:
    """The map that scales, turns (clockwise on the screen) and then moves to (x, y)."""
    cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return np.array([(cos, -sin, x), (sin, cos, y)])


def moved(matrix: Matrix, points: Points) -> Points:
    """Apply an affine map to points (n 2)."""
    result: Points = points @ matrix[:, :2].T + matrix[:, 2]
    return result
