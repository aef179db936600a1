"""Hair and hats, in head units (see `shapes`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from omniavatar_drawn.faces.curves import Points, band, ellipse, mirrored, spline
from omniavatar_drawn.faces.identity import Hair, Identity
from omniavatar_drawn.faces.palette import Colour, darker, lighter, mix
from omniavatar_drawn.faces.shapes import Shape

Outline = tuple[tuple[float, float], ...]


class Cut(NamedTuple):
    """Hair above the forehead: a dome `width` by `height` from ear to ear down to y = `side`, above a hairline.

    hairline: its right half from the ear to the middle. bumps, spikes: how many the dome has.
    """

    hairline: Outline
    width: float
    side: float
    height: float
    bumps: int = 0
    spikes: int = 0
    shine: bool = False


# fmt: off
_CUTS: dict[Hair, Cut] = {
    "shaved": Cut(((0.93, -0.15), (0.82, -0.62), (0.45, -0.8), (0, -0.82)), 1.03, -0.1, 1.0),
    "short": Cut(((0.92, 0.02), (0.87, -0.4), (0.72, -0.66), (0.35, -0.74), (0, -0.7)), 1.09, 0.02, 1.12, shine=True),
    "parted": Cut(((0.92, 0.02), (0.87, -0.4), (0.6, -0.52), (0, -0.66)), 1.1, 0.02, 1.16, shine=True),
    "spiky": Cut(((0.92, 0.02), (0.86, -0.45), (0.6, -0.72), (0.25, -0.66), (0, -0.76)), 1.08, 0.02, 1.14, spikes=9),
    "curly": Cut(((0.94, 0.1), (0.92, -0.4), (0.7, -0.62), (0.45, -0.58), (0.2, -0.7), (0, -0.6)),
        1.16, 0.1, 1.22, bumps=9),
    "afro": Cut(((0.95, 0.05), (0.88, -0.45), (0.6, -0.68), (0, -0.74)), 1.08, 0.05, 1.15),
    "bob": Cut(((0.98, 0.55), (0.84, -0.1), (0.8, -0.36), (0.4, -0.4), (0, -0.38)), 1.13, 0.6, 1.16, shine=True),
    "long": Cut(((0.99, 0.7), (0.9, 0.0), (0.78, -0.42), (0.4, -0.76), (0, -0.98)), 1.13, 0.75, 1.16, shine=True),
    "wavy": Cut(((0.99, 0.7), (0.9, 0.0), (0.78, -0.42), (0.4, -0.76), (0, -0.98)), 1.13, 0.75, 1.16, shine=True),
    "bun": Cut(((0.95, -0.05), (0.8, -0.52), (0.5, -0.78), (0, -0.86)), 1.06, -0.05, 1.1, shine=True),
    "ponytail": Cut(((0.95, -0.05), (0.8, -0.52), (0.5, -0.78), (0, -0.86)), 1.06, -0.05, 1.1, shine=True),
}
_BELOW_A_HAT = Cut(((0.94, 0.1), (0.88, -0.3), (0.7, -0.5), (0, -0.56)), 1.06, 0.1, 1.05)
_PARTING: Outline = ((0.92, 0.02), (0.8, -0.62), (0.5, -0.88))  # the other side of parted hair

# Right halves of what hangs behind the head.
_FALLS: dict[Hair, Outline] = {
    "bob": ((0, -1.3), (0.85, -1.1), (1.24, -0.4), (1.32, 0.4), (1.22, 0.98), (0.6, 1.05), (0, 1.0)),
    "long": ((0, -1.3), (0.85, -1.1), (1.22, -0.4), (1.26, 0.6), (1.3, 1.6), (1.18, 2.15), (0.6, 2.1), (0, 2.0)),
    "wavy": ((0, -1.34), (0.9, -1.12), (1.3, -0.4), (1.22, 0.1), (1.44, 0.6), (1.3, 1.05), (1.5, 1.5), (1.3, 2.0),
        (0.7, 2.15), (0, 2.0)),
}
_TAIL: Outline = ((0.5, -1.2), (1.1, -1.05), (1.52, -0.35), (1.6, 0.6), (1.4, 1.35), (1.2, 0.9), (1.16, 0.2),
    (0.9, -0.5))

_SCARF_BEHIND: Outline = ((0, -1.38), (0.8, -1.1), (1.2, -0.2), (1.14, 0.8), (1.0, 1.7), (0, 1.9))
_SCARF: Outline = ((0, -1.36), (0.72, -1.14), (1.1, -0.4), (1.12, 0.3), (1.04, 0.95), (0.8, 1.5), (0, 1.66))
_SCARF_OPENING: Outline = ((0, -0.74), (0.5, -0.68), (0.82, -0.3), (0.86, 0.2), (0.76, 0.76), (0.44, 1.12), (0, 1.2))
_BEANIE: Outline = ((0, -1.6), (0.62, -1.46), (1.06, -1.0), (1.14, -0.5), (0.5, -0.62), (0, -0.64))
_BEANIE_RIM: Outline = ((0, -0.86), (0.6, -0.82), (1.16, -0.66), (1.18, -0.38), (0.6, -0.52), (0, -0.56))
_CAP: Outline = ((0, -1.44), (0.62, -1.34), (1.04, -0.94), (1.1, -0.46), (0.5, -0.6), (0, -0.62))
_CAP_PEAK: Outline = ((0, -0.78), (0.6, -0.72), (0.98, -0.5), (0.62, -0.48), (0, -0.5))
# fmt: on


def behind(who: Identity) -> list[Shape]:
    """What hangs or rises behind the head."""
    colour = darker(who.hair_colour.rgb, 0.16)
    if who.hat == "headscarf":
        return [_both_sides(_SCARF_BEHIND, darker(who.hat_colour.rgb, 0.14))]
    if who.hair in _FALLS:
        return [_both_sides(_FALLS[who.hair], colour)]
    if who.hair == "ponytail":
        return [Shape(spline(np.array(_TAIL) * (who.side, 1)), colour)]
    if who.hair == "curly" and who.person == "woman":
        return [Shape(_cloud((0.0, 0.1), (1.42, 1.4), 17), colour)]
    if who.hat or who.hair not in ("afro", "bun"):
        return []
    afro = who.hair == "afro"
    return [Shape(_cloud((0.0, -0.42), (1.5, 1.34), 15) if afro else ellipse((0.0, -1.52), (0.44, 0.4)), colour)]


def in_front(who: Identity) -> list[Shape]:
    """The hair above the forehead, or the hat that covers it."""
    colour = who.hair_colour.rgb
    if who.hat == "headscarf":
        return _hat(who)
    if who.hat is not None:
        fringe = [] if who.hair in ("bald", "shaved") else [Shape(_dome(_BELOW_A_HAT, who.side), colour)]
        return fringe + _hat(who)
    if who.hair == "bald":
        return []
    cut = _CUTS[who.hair]
    if who.hair == "shaved":
        colour = mix(colour, who.skin.rgb, 0.35)
    shape = Shape(_dome(cut, who.side, _PARTING if who.hair == "parted" else cut.hairline), colour)
    return [shape, _shine(lighter(colour, 0.14), who.side)] if cut.shine else [shape]


def _dome(cut: Cut, side: int, other: Outline | None = None) -> Points:
    """A cut as one polygon; `other` is the hairline of the side of the parting."""
    angle = np.linspace(-np.pi, 0, 60)
    radius = np.ones_like(angle)
    if cut.bumps:
        radius += 0.045 * np.abs(np.sin((angle + np.pi) * cut.bumps / 2))
    if cut.spikes:
        saw = 1 - np.abs(((angle + np.pi) / np.pi * cut.spikes) % 1 * 2 - 1)
        radius += 0.2 * np.sin(-angle) ** 2 * saw + 0.04
    dome = np.stack([cut.width * radius * np.cos(angle), -0.22 + cut.height * radius * np.sin(angle)], axis=1)
    edge = 0.98 * cut.width
    right, left = (other or cut.hairline, cut.hairline) if side > 0 else (cut.hairline, other or cut.hairline)
    middle = [(-x, y) for x, y in left[::-1] if x > 0]
    hairline = spline([*right, *middle], closed=False)
    return np.concatenate([[(-edge, cut.side)], dome, [(edge, cut.side)], hairline])


def _cloud(centre: tuple[float, float], radii: tuple[float, float], bumps: int) -> Points:
    angle = np.linspace(0, 2 * np.pi, bumps * 8, endpoint=False)
    radius = 1 + 0.05 * np.abs(np.sin(angle * bumps / 2))
    x, y = centre[0] + radii[0] * radius * np.cos(angle), centre[1] + radii[1] * radius * np.sin(angle)
    return np.stack([x, y], axis=1)


def _shine(colour: Colour, side: int) -> Shape:
    arc = spline([(-0.72, -0.82), (-0.42, -1.08), (0.0, -1.18)], closed=False)
    return Shape(band(arc * (side, 1), 0.12), colour)


def _hat(who: Identity) -> list[Shape]:
    colour = who.hat_colour.rgb
    dark = darker(colour, 0.2)
    if who.hat == "beanie":
        bobble = Shape(ellipse((0, -1.6), (0.2, 0.2)), lighter(colour, 0.3))
        return [bobble, _both_sides(_BEANIE, colour), _both_sides(_BEANIE_RIM, dark)]
    if who.hat == "cap":
        return [_both_sides(_CAP, colour), _both_sides(_CAP_PEAK, dark)]
    outer, opening = spline(mirrored(_SCARF)), spline(mirrored(_SCARF_OPENING))
    return [Shape(np.concatenate([outer, outer[:1], opening[:1], opening[::-1]]), colour)]


def _both_sides(right: Outline, colour: Colour) -> Shape:
    return Shape(spline(mirrored(right)), colour)
