"""What is behind the head: a wall, drawn once for each clip."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from omniavatar_drawn.faces.identity import Identity
from omniavatar_drawn.faces.palette import Colour, darker, lighter, mix


def wall(who: Identity, size: int) -> Image.Image:
    """The background, `size` x `size`, softly lit from above."""
    base = who.wall_colour.rgb
    top, bottom = (
        (lighter(base, 0.55), darker(base, 0.3))
        if who.wall == "gradient"
        else (lighter(base, 0.08), darker(base, 0.08))
    )
    picture = _vertical(top, bottom, size)
    draw = _Canvas(picture, size)
    side = -who.side
    match who.wall:
        case "stripes":
            for index in range(6):
                draw.box(index / 6, 0, index / 6 + 1 / 12, 1, darker(base, 0.1))
        case "dots":
            for row in range(8):
                for column in range(9):
                    draw.disc((column + 0.5 * (row % 2)) / 8, (row + 0.5) / 8, 0.019, lighter(base, 0.45))
        case "window":
            x = 0.5 + 0.31 * side
            draw.box(x - 0.21, 0.03, x + 0.21, 0.57, (250, 248, 244))
            for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
                left, up = x - 0.185 + 0.195 * dx, 0.055 + 0.255 * dy
                draw.box(left, up, left + 0.175, up + 0.235, mix((150, 206, 246), (206, 234, 252), dy))
        case "shelf":
            _shelf(draw, side)
        case "plant":
            _plant(draw, 0.5 + 0.37 * side)
        case "lights":
            random = np.random.Generator(np.random.PCG64([who.seed, 0x11]))
            for x, y, r in random.uniform((0, 0, 0.025), (1, 0.75, 0.06), (14, 3)):
                draw.disc(x, y, r, mix(base, (255, 236, 170), 0.6))
        case "picture":
            x = 0.5 + 0.34 * side
            draw.box(x - 0.14, 0.1, x + 0.14, 0.46, darker(base, 0.6))
            draw.box(x - 0.115, 0.125, x + 0.115, 0.435, (246, 240, 226))
            draw.disc(x + 0.02, 0.22, 0.045, (244, 178, 70))
            draw.polygon(
                [
                    (x - 0.115, 0.435),
                    (x - 0.02, 0.27),
                    (x + 0.05, 0.36),
                    (x + 0.08, 0.32),
                    (x + 0.115, 0.37),
                    (x + 0.115, 0.435),
                ],
                (90, 150, 130),
            )
    return picture


def _vertical(top: Colour, bottom: Colour, size: int) -> Image.Image:
    amount = np.linspace(0, 1, size)[:, None]
    column = np.array(top) + (np.array(bottom) - np.array(top)) * amount
    return Image.fromarray(np.broadcast_to(column.round().astype(np.uint8)[:, None], (size, size, 3)).copy())


def _shelf(draw: _Canvas, side: int) -> None:
    colours: tuple[Colour, ...] = (
        (196, 72, 62),
        (236, 180, 78),
        (64, 110, 150),
        (92, 146, 104),
        (226, 222, 210),
        (120, 84, 140),
    )
    for row, board in enumerate((0.3, 0.62)):
        draw.box(0, board, 1, board + 0.028, (134, 94, 62))
        for index in range(18):
            x = index / 18
            height = 0.13 + 0.05 * ((index * 7 + row * 3) % 5) / 5
            if (index * side + row) % 6 != 4:
                draw.box(x + 0.004, board - height, x + 0.05, board, colours[(index * 5 + row * 2) % 6])


def _plant(draw: _Canvas, x: float) -> None:
    for index, (dx, dy) in enumerate(((-0.09, 0.1), (0.09, 0.14), (-0.05, 0.0), (0.05, 0.03), (0.0, -0.05))):
        leaf = [
            (x, 0.62),
            (x + dx * 1.5 - 0.035, 0.34 + dy),
            (x + dx * 1.7, 0.2 + dy),
            (x + dx * 1.3 + 0.045, 0.36 + dy),
        ]
        draw.polygon(leaf, (60, 140, 84) if index % 2 else (84, 166, 96))
    draw.polygon([(x - 0.09, 0.62), (x + 0.09, 0.62), (x + 0.065, 0.8), (x - 0.065, 0.8)], (196, 112, 76))
    draw.box(x - 0.1, 0.6, x + 0.1, 0.645, (214, 130, 90))


class _Canvas:
    """Draws in fractions of the picture's side."""

    def __init__(self, picture: Image.Image, size: int) -> None:
        self._draw, self._size = ImageDraw.Draw(picture), size

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self._draw.rectangle([round(v * self._size) for v in (left, top, right, bottom)], fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        self._draw.ellipse([v * self._size for v in (x - radius, y - radius, x + radius, y + radius)], fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self._draw.polygon([(x * self._size, y * self._size) for x, y in points], fill=colour)
