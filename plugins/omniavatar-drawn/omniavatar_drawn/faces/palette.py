"""The colours of the procedural faces, (red, green, blue) in 0..255, and their names for captions.

The inside of a mouth has the same colours in every face, so that its opening can be read from pixels alone.
"""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]

MOUTH_DARK: Colour = (58, 8, 26)
TONGUE: Colour = (148, 32, 58)
TEETH: Colour = (250, 248, 242)
EYE_WHITE: Colour = (252, 252, 250)
PUPIL: Colour = (24, 20, 24)

SKIN: dict[str, Colour] = {
    "pale": (252, 222, 204),
    "fair": (246, 204, 174),
    "olive": (226, 182, 142),
    "tan": (208, 156, 114),
    "brown": (172, 118, 80),
    "dark": (128, 84, 58),
}
HAIR: dict[str, Colour] = {
    "black": (40, 36, 44),
    "dark brown": (78, 52, 40),
    "brown": (122, 80, 50),
    "auburn": (150, 62, 36),
    "red": (204, 86, 38),
    "blonde": (232, 190, 98),
    "grey": (150, 152, 158),
    "white": (232, 232, 230),
    "blue": (70, 110, 200),
    "pink": (232, 120, 168),
}
EYES: dict[str, Colour] = {
    "brown": (104, 66, 38),
    "blue": (64, 126, 196),
    "green": (72, 140, 84),
    "grey": (116, 130, 142),
    "dark": (52, 38, 34),
}
CLOTHES: dict[str, Colour] = {
    "red": (206, 58, 56),
    "orange": (238, 138, 50),
    "yellow": (244, 202, 70),
    "green": (70, 152, 92),
    "teal": (44, 150, 154),
    "blue": (58, 108, 196),
    "navy": (44, 58, 104),
    "purple": (128, 80, 168),
    "pink": (238, 142, 172),
    "white": (240, 240, 238),
    "grey": (134, 140, 150),
    "black": (50, 50, 58),
    "brown": (136, 96, 66),
}
WALLS: dict[str, Colour] = {
    "white": (238, 238, 234),
    "grey": (176, 182, 190),
    "beige": (228, 212, 184),
    "yellow": (250, 222, 128),
    "orange": (246, 178, 112),
    "red": (206, 96, 88),
    "pink": (246, 190, 204),
    "purple": (170, 142, 206),
    "blue": (134, 180, 226),
    "navy": (62, 80, 128),
    "teal": (98, 184, 184),
    "green": (144, 198, 138),
    "dark green": (66, 112, 88),
}
LIPSTICK: dict[str, Colour] = {"red": (204, 44, 62), "pink": (232, 104, 136), "plum": (156, 60, 100)}


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    """From `first` (amount 0) to `second` (amount 1)."""
    red, green, blue = (round(a + (b - a) * amount) for a, b in zip(first, second, strict=True))
    return red, green, blue


def darker(colour: Colour, amount: float) -> Colour:
    return mix(colour, (24, 12, 30), amount)


def lighter(colour: Colour, amount: float) -> Colour:
    return mix(colour, (255, 255, 255), amount)


def distance(first: Colour, second: Colour) -> float:
    """Euclidean distance of two colours, 0..442."""
    return float(np.linalg.norm(np.subtract(first, second)))
