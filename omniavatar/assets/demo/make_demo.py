"""Draws `portrait.png`: `python omniavatar/assets/demo/make_demo.py`. The same picture every time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 512
SAMPLES = 4  # per pixel and axis
SKIN, SKIN_SHADE, BLUSH = (247, 205, 172), (226, 168, 134), (240, 140, 120)
HAIR, HAIR_LIGHT, HAIR_SHADE = (84, 48, 38), (134, 84, 60), (66, 38, 31)
SHIRT, SHIRT_SHADE, COLLAR = (38, 110, 122), (27, 84, 96), (245, 240, 230)
INK, IRIS, LIP, LIP_LINE, WHITE = (52, 34, 34), (74, 112, 92), (214, 104, 100), (140, 56, 58), (255, 255, 255)

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


class Canvas:
    """Layers of flat colour on a supersampled picture; coordinates run from 0 to 512."""

    def __init__(self, top: Colour, bottom: Colour) -> None:
        size = (SIDE * SAMPLES, SIDE * SAMPLES)
        ramp = Image.linear_gradient("L").resize(size)
        self.image = Image.composite(Image.new("RGB", size, bottom), Image.new("RGB", size, top), ramp)

    def mask(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        mask = Image.new("L", self.image.size)
        return mask, ImageDraw.Draw(mask)

    def fill(self, mask: Image.Image, colour: Colour, *, opacity: float = 1.0, blur: float = 0.0) -> None:
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * SAMPLES))
        self.image.paste(colour, mask=mask.point(lambda value: round(value * opacity)))

    def ellipse(self, x: float, y: float, width: float, height: float) -> Image.Image:
        """The mask of an ellipse with this centre and these diameters."""
        mask, draw = self.mask()
        draw.ellipse([SAMPLES * v for v in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)], fill=255)
        return mask

    def shape(self, points: Points) -> Image.Image:
        """The mask of a closed smooth curve (quadratic B-spline) with these control points."""
        mask, draw = self.mask()
        draw.polygon([(SAMPLES * x, SAMPLES * y) for x, y in smooth(points, closed=True)], fill=255)
        return mask

    def stroke(self, points: Points, width: float) -> Image.Image:
        """The mask of a smooth line with round ends."""
        mask, draw = self.mask()
        radius = SAMPLES * width / 2
        for x, y in smooth(points, closed=False):
            left, top = SAMPLES * x - radius, SAMPLES * y - radius
            draw.ellipse((left, top, left + 2 * radius, top + 2 * radius), fill=255)
        return mask


def smooth(points: Points, *, closed: bool, steps: int = 60) -> Points:
    """Sample the uniform quadratic B-spline of the control points; an open one starts and ends at its outer points."""
    control = [*points, *points[:2]] if closed else [points[0], *points, points[-1]]
    curve: list[tuple[float, float]] = []
    for (ax, ay), (bx, by), (cx, cy) in zip(control, control[1:], control[2:], strict=False):
        for step in range(steps):
            t = step / steps
            a, b, c = (1 - t) ** 2 / 2, (1 + 2 * t - 2 * t * t) / 2, t * t / 2
            curve.append((a * ax + b * bx + c * cx, a * ay + b * by + c * cy))
    return curve


def mirrored(points: Points) -> Points:
    """The points of the right half followed by their mirror images, for shapes that are symmetric about x = 256."""
    return [*points, *((SIDE - x, y) for x, y in reversed(points))]


def draw_background_and_body(canvas: Canvas) -> None:
    canvas.fill(canvas.ellipse(256, 230, 430, 430), (255, 244, 222), opacity=0.55, blur=30)
    back_hair = mirrored([(256, 62), (360, 70), (408, 170), (400, 290), (412, 372), (330, 400), (256, 380)])
    canvas.fill(canvas.shape(back_hair), HAIR_SHADE)
    shoulders = mirrored([(256, 372), (318, 384), (400, 404), (466, 440), (486, 540), (256, 560)])
    body = canvas.shape(shoulders)
    canvas.fill(body, SHIRT)
    for x in (108, 404):
        canvas.fill(ImageChops.multiply(body, canvas.ellipse(x, 540, 40, 190)), SHIRT_SHADE, opacity=0.7, blur=16)
    neck = mirrored([(256, 330), (300, 320), (304, 380), (318, 404), (256, 446)])
    canvas.fill(canvas.shape(neck), SKIN)
    shade = ImageChops.multiply(canvas.shape(neck), canvas.ellipse(256, 340, 150, 96))
    canvas.fill(shade, SKIN_SHADE, opacity=0.85, blur=4)
    for side in (1, -1):
        flap = [(256 + side * dx, y) for dx, y in ((0, 440), (52, 378), (82, 388), (64, 440), (34, 470))]
        canvas.fill(canvas.shape(flap), COLLAR)


def draw_head(canvas: Canvas) -> None:
    for x in (150, 362):
        canvas.fill(canvas.ellipse(x, 246, 40, 58), SKIN)
        canvas.fill(canvas.ellipse(x, 248, 20, 34), SKIN_SHADE, opacity=0.7, blur=2)
    face = canvas.shape(mirrored([(256, 106), (346, 106), (368, 210), (356, 300), (310, 366), (256, 376)]))
    canvas.fill(face, SKIN)
    canvas.fill(ImageChops.subtract(face, canvas.ellipse(248, 222, 206, 300)), SKIN_SHADE, opacity=0.35, blur=7)
    for x in (184, 328):
        canvas.fill(ImageChops.multiply(face, canvas.ellipse(x, 288, 50, 34)), BLUSH, opacity=0.45, blur=8)


def draw_features(canvas: Canvas) -> None:
    for x, inward in ((208, 1), (304, -1)):
        eye = canvas.ellipse(x, 240, 46, 34)
        canvas.fill(eye, WHITE)
        canvas.fill(ImageChops.multiply(eye, canvas.ellipse(x + 2 * inward, 239, 31, 33)), IRIS)
        canvas.fill(canvas.ellipse(x + 2 * inward, 239, 16, 17), INK)
        canvas.fill(canvas.ellipse(x + 2 * inward + 5, 233, 8, 8), WHITE)
        lid = [(x - 25, 241), (x - 18, 224), (x, 219), (x + 18, 224), (x + 25, 241)]
        canvas.fill(canvas.stroke(lid, 5), INK)
        brow = [(x - 30 * inward, 206), (x - 8 * inward, 192), (x + 22 * inward, 201)]
        canvas.fill(canvas.stroke(brow, 8), HAIR)
    canvas.fill(canvas.stroke([(244, 286), (250, 294), (262, 294), (268, 286)], 4), SKIN_SHADE)
    lips = mirrored([(256, 324), (262, 320), (276, 320), (304, 320), (284, 340), (256, 346)])
    canvas.fill(canvas.shape(lips), LIP)
    canvas.fill(canvas.ellipse(256, 335, 26, 6), WHITE, opacity=0.3, blur=2)
    canvas.fill(canvas.stroke([(214, 318), (236, 327), (256, 328), (276, 327), (298, 318)], 3.5), LIP_LINE)


def draw_hair(canvas: Canvas) -> None:
    fringe = [(150, 262), (132, 200), (142, 120), (196, 62), (270, 48), (344, 66), (384, 140), (380, 210)]
    fringe += [(362, 262), (356, 214), (344, 170), (310, 140), (268, 158), (214, 184), (172, 196), (162, 226)]
    hair = canvas.shape(fringe)
    canvas.fill(hair, HAIR)
    for points in ([(180, 150), (210, 100), (270, 76)], [(216, 160), (262, 126), (320, 116)]):
        canvas.fill(ImageChops.multiply(hair, canvas.stroke(points, 9)), HAIR_LIGHT, opacity=0.6, blur=5)


def main() -> None:
    canvas = Canvas(top=(188, 218, 226), bottom=(240, 220, 196))
    draw_background_and_body(canvas)
    draw_head(canvas)
    draw_features(canvas)
    draw_hair(canvas)
    picture = canvas.image.resize((SIDE, SIDE), Image.Resampling.BOX)
    picture.save(Path(__file__).with_name("portrait.png"), optimize=True)


if __name__ == "__main__":
    main()
