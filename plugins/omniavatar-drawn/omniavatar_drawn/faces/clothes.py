"""Shoulders in clothes, in head units (see `shapes`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from omniavatar_drawn.faces.curves import Points, box, ellipse, mirrored, spline
from omniavatar_drawn.faces.identity import Clothes, Identity
from omniavatar_drawn.faces.palette import Colour, darker, lighter
from omniavatar_drawn.faces.shapes import Shape, mirror_pair, throat

BOTTOM = 3.2
_SHOULDER = ((0.3, 1.44), (0.62, 1.6), (1.3, 1.84), (1.78, 2.2), (1.95, BOTTOM))


def body(who: Identity) -> list[Shape]:
    """The clothes, and the skin that their neckline leaves bare."""
    right = spline(np.array(_SHOULDER) * (1.0 if who.person == "woman" else 1.14, 1), closed=False)
    outline = np.concatenate([right, right[::-1] * (-1, 1)])
    details = _DETAILS[who.clothes](who, right)
    return [Shape(outline, who.clothes_colour.rgb), *details]


def _t_shirt(who: Identity, shoulder: Points) -> list[Shape]:
    collar = Shape(ellipse((0, 1.52), (0.6, 0.3)), _dark(who))
    return [collar, Shape(ellipse((0, 1.47), (0.54, 0.27)), throat(who))]


def _striped_top(who: Identity, shoulder: Points) -> list[Shape]:
    stripes = []
    for top in (1.78, 2.06, 2.34, 2.62):
        left, right = (float(np.interp(y, shoulder[:, 1], shoulder[:, 0])) for y in (top, top + 0.13))
        corners = [(-left, top), (left, top), (right, top + 0.13), (-right, top + 0.13)]
        stripes.append(Shape(np.array(corners), who.second_colour.rgb))
    return [*stripes, Shape(ellipse((0, 1.52), (0.5, 0.24)), throat(who))]


def _v_neck(who: Identity, shoulder: Points) -> list[Shape]:
    seam = Shape(np.array([(-0.62, 1.4), (0.62, 1.4), (0, 2.22)]), _dark(who))
    return [seam, Shape(np.array([(-0.53, 1.36), (0.53, 1.36), (0, 2.08)]), throat(who))]


def _shirt(who: Identity, shoulder: Points) -> list[Shape]:
    inside = Shape(np.array([(-0.5, 1.36), (0.5, 1.36), (0, 1.9)]), throat(who))
    placket = Shape(box(-0.02, 1.84, 0.02, BOTTOM), _dark(who))
    collar = np.array([(0.0, 1.84), (0.42, 1.44), (0.66, 1.62), (0.38, 2.08)])
    buttons = [Shape(ellipse((0, y), (0.055, 0.055), 12), _dark(who)) for y in (2.1, 2.42)]
    return [inside, placket, *mirror_pair(collar, lighter(who.clothes_colour.rgb, 0.28)), *buttons]


def _hoodie(who: Identity, shoulder: Points) -> list[Shape]:
    colour = who.clothes_colour.rgb
    hood = spline(mirrored([(0, 1.3), (0.62, 1.34), (0.94, 1.62), (0.6, 1.96), (0, 2.12)]))
    inside = spline(mirrored([(0, 1.36), (0.46, 1.42), (0.58, 1.62), (0.34, 1.84), (0, 1.92)]))
    cords = mirror_pair(box(0.2, 1.95, 0.26, 2.36), lighter(colour, 0.6))
    return [Shape(hood, _dark(who)), Shape(inside, darker(colour, 0.4)), *cords]


def _jacket(who: Identity, shoulder: Points) -> list[Shape]:
    front = np.array([(-0.5, 1.48), (0, 1.62), (0.5, 1.48), (0.22, BOTTOM), (-0.22, BOTTOM)])
    tie = np.array([(-0.1, 1.72), (0.1, 1.72), (0.16, 2.5), (-0.16, 2.5)])
    lapel = np.array([(0.44, 1.46), (0.74, 1.66), (0.62, 2.1), (0.24, BOTTOM), (0.1, 2.6)])
    neckline = Shape(np.array([(-0.48, 1.36), (0.48, 1.36), (0.5, 1.5), (0, 1.66), (-0.5, 1.5)]), throat(who))
    shirt = Shape(front, (244, 244, 242))
    return [neckline, shirt, Shape(tie, who.second_colour.rgb), *mirror_pair(lapel, _dark(who))]


def _dress(who: Identity, shoulder: Points) -> list[Shape]:
    chest = spline(mirrored([(0, 1.34), (0.62, 1.4), (0.8, 1.86), (0.5, 2.18), (0, 2.26)]))
    necklace = [(x, 1.82 + 0.26 * (1 - (x / 0.5) ** 2)) for x in np.linspace(-0.5, 0.5, 9)]
    beads = [Shape(ellipse(place, (0.055, 0.055), 10), who.second_colour.rgb) for place in necklace]
    return [Shape(chest, throat(who)), *beads]


def _dark(who: Identity) -> Colour:
    return darker(who.clothes_colour.rgb, 0.2)


_DETAILS: dict[Clothes, Callable[[Identity, Points], list[Shape]]] = {
    "t-shirt": _t_shirt,
    "striped top": _striped_top,
    "v-neck": _v_neck,
    "shirt": _shirt,
    "hoodie": _hoodie,
    "jacket": _jacket,
    "dress": _dress,
}
