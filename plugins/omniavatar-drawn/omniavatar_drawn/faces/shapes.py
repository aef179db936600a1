"""The parts of a head that keep their form: skull, cheeks, nose, beards, glasses and neck.

All lie in head units: the origin is the middle of the head, 1 is half its width, y points down. The crown is at about
-1.15, the eyes at 0, the mouth at 0.7, the chin at 1.25, the shoulders end where the picture does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from omniavatar_drawn.faces.curves import (
    Points,
    band,
    box,
    ellipse,
    frame_of,
    mirrored,
    ring,
    scaled,
    spline,
)
from omniavatar_drawn.faces.identity import Face, Identity
from omniavatar_drawn.faces.palette import Colour, darker, lighter, mix

_JAWS: dict[Face, tuple[tuple[float, float], ...]] = {
    "round": ((0.97, 0.3), (0.84, 0.78), (0.48, 1.12), (0.0, 1.22)),
    "oval": ((0.95, 0.3), (0.76, 0.84), (0.38, 1.2), (0.0, 1.3)),
    "square": ((0.97, 0.3), (0.9, 0.82), (0.5, 1.17), (0.0, 1.23)),
    "heart": ((0.93, 0.3), (0.7, 0.8), (0.3, 1.19), (0.0, 1.3)),
}


class Shape(NamedTuple):
    """A filled polygon: points (n 2) in head units."""

    points: Points
    colour: Colour


def mirror_pair(points: Points, colour: Colour) -> list[Shape]:
    return [Shape(points, colour), Shape(points * (-1, 1), colour)]


def skull(face: Face) -> Points:
    return spline(mirrored([(0.0, -1.15), (0.52, -1.04), (0.88, -0.68), (0.97, -0.2), *_JAWS[face]]))


def head(who: Identity) -> list[Shape]:
    """Ears and the face, a little darker along its left and lower edge."""
    skin, shade = who.skin.rgb, darker(who.skin.rgb, 0.13)
    outline = skull(who.face)
    ears, hollows = ellipse((1.0, 0.1), (0.17, 0.25)), ellipse((1.01, 0.12), (0.09, 0.14))
    lit = scaled(outline, 0.955, 0.965, (0.25, -0.3))
    return [*mirror_pair(ears, skin), *mirror_pair(hollows, shade), Shape(outline, shade), Shape(lit, skin)]


def cheeks(who: Identity) -> list[Shape]:
    shapes = mirror_pair(ellipse((0.63, 0.36), (0.17, 0.12)), mix(who.skin.rgb, (236, 96, 96), 0.2))
    if who.freckles:
        spots = ((0.52, 0.25), (0.64, 0.31), (0.74, 0.22), (0.6, 0.16))
        for spot in spots:
            shapes += mirror_pair(ellipse(spot, (0.028, 0.028), 8), mix(who.skin.rgb, (140, 70, 40), 0.5))
    return shapes


def nose(who: Identity) -> list[Shape]:
    size = who.nose_size
    bridge = spline([(-0.02, 0.0), (0.04, 0.12), (0.15 * size, 0.31), (0.1, 0.38), (-0.1, 0.38), (-0.15 * size, 0.31)])
    tip = ellipse((-0.01, 0.28), (0.1 * size, 0.075))
    return [Shape(bridge, darker(who.skin.rgb, 0.13)), Shape(tip, lighter(who.skin.rgb, 0.12))]


def beard(who: Identity) -> list[Shape]:
    """Facial hair behind the mouth; a bare rim around the lips stays."""
    if who.beard is None:
        return []
    colour = mix(who.hair_colour.rgb, who.skin.rgb, 0.22)
    lip = mirrored([(0.0, 0.44), (0.2, 0.43), (0.44, 0.56), (0.56, 0.7), (0.36, 0.59), (0.0, 0.565)])
    moustache = Shape(spline(lip), colour)
    if who.beard == "moustache":
        return [moustache]
    if who.beard == "goatee":
        chin = mirrored([(0.0, 1.04), (0.2, 1.06), (0.36, 0.98), (0.37, 1.16), (0.2, 1.34), (0.0, 1.38)])
        return [moustache, Shape(spline(chin), colour)]
    jaw = np.array(_JAWS[who.face]) * (1.03, 1.05)
    inner = [(0.86, 0.34), (0.73, 0.62), (0.6, 0.9), (0.3, 1.05), (0.0, 1.06)]
    right = spline([(0.97, 0.0), *map(tuple, jaw)], closed=False)
    back = spline([(0.0, 1.06), *inner[::-1][1:], (0.88, 0.05)], closed=False)
    half = np.concatenate([right, back])
    return [moustache, Shape(half, colour), Shape(half * (-1, 1), colour)]


def glasses(who: Identity) -> list[Shape]:
    if who.glasses is None:
        return []
    rim: Colour = (42, 36, 44) if sum(who.skin.rgb) > 420 else (232, 196, 120)
    x = 0.43 * who.eye_spacing
    if who.glasses == "round":
        lens = ring((x, 0.02), (0.33, 0.31), 0.075)
    else:
        corners = [(x - 0.33, -0.22), (x, -0.25), (x + 0.34, -0.22), (x + 0.32, 0.22), (x, 0.27), (x - 0.29, 0.22)]
        lens = frame_of(spline(corners), 0.075)
    bridge = band(spline([(-x + 0.32, 0.0), (0.0, -0.07), (x - 0.32, 0.0)], closed=False), 0.085)
    return [*mirror_pair(lens, rim), Shape(bridge, rim), *mirror_pair(box(x + 0.31, -0.06, 1.0, 0.02), rim)]


def earrings(who: Identity) -> list[Shape]:
    return mirror_pair(ellipse((1.04, 0.42), (0.085, 0.085), 16), (250, 206, 84)) if who.earrings else []


def neck(who: Identity) -> tuple[Points, Colour]:
    """The neck; its upper two points move with the head."""
    half = 0.36 if who.person == "woman" else 0.47
    return np.array([(-half, 0.7), (half, 0.7), (half + 0.08, 1.8), (-half - 0.08, 1.8)]), throat(who)


def chin_shadow(who: Identity) -> list[Shape]:
    """What the head casts on the neck; it moves with the head."""
    half = 0.35 if who.person == "woman" else 0.46
    shadow = spline(mirrored([(0, 0.7), (half, 0.8), (half, 1.2), (half * 0.6, 1.42), (0, 1.48)]))
    return [Shape(shadow, darker(who.skin.rgb, 0.26))]


def throat(who: Identity) -> Colour:
    return darker(who.skin.rgb, 0.1)
