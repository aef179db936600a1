"""Draws one face in any pose: flat polygons at several times the size, then reduced, in about 3 ms at 128x128."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from omniavatar_drawn.faces import clothes, features, hair, scenes, shapes
from omniavatar_drawn.faces.curves import Matrix, moved, placement
from omniavatar_drawn.faces.identity import Identity
from omniavatar_drawn.faces.performance import Pose
from omniavatar_drawn.faces.shapes import Shape

HEAD_CENTRE = (0.5, 0.455)
HALF_WIDTH = 0.222
_DRAWN_SIDE = 512
REST = (0.0, 0.5)


class Renderer:
    """Draws `who` in pictures of `size` x `size` pixels; what does not move is prepared once."""

    def __init__(self, who: Identity, size: int) -> None:
        self.who, self.size = who, size
        self._factor = max(2, round(_DRAWN_SIDE / size))
        self._wall = scenes.wall(who, size * self._factor)
        self._behind = hair.behind(who)
        self._neck, self._neck_colour = shapes.neck(who)
        self._shadow = shapes.chin_shadow(who)
        self._body = clothes.body(who)
        self._head = shapes.head(who)
        self._face = [*shapes.cheeks(who), *shapes.nose(who)]
        self._beard = shapes.beard(who)
        self._front = hair.in_front(who)
        self._extras = shapes.glasses(who)
        self._earrings = shapes.earrings(who)

    def draw(self, pose: Pose, mouth: tuple[float, float] = REST) -> np.ndarray:
        """One picture (size, size, 3) uint8. mouth: opening and width, each 0 to 1."""
        opening, width = (float(np.clip(value, 0, 1)) for value in mouth)
        who = self.who
        head, body = self._matrices(pose)
        front, face = _shifted(head, pose, 0.4), _shifted(head, pose, 1.0)
        picture = self._wall.copy()
        draw = ImageDraw.Draw(picture)
        _fill(draw, _shifted(head, pose, -0.5), self._behind)
        neck = np.concatenate([moved(head, self._neck[:2]), moved(body, self._neck[2:])])
        draw.polygon(np.rint(neck).ravel().tolist(), fill=self._neck_colour)
        _fill(draw, body, self._body)
        _fill(draw, head, self._shadow)
        _fill(draw, head, [Shape(features.jaw(points, opening), colour) for points, colour in self._head])
        _fill(draw, face, self._face)
        _fill(draw, face, [Shape(features.jaw(points, opening), colour) for points, colour in self._beard])
        _fill(draw, face, features.mouth(who, opening, width, pose.smile))
        _fill(draw, face, features.eyes(who, pose))
        _fill(draw, front, self._front)
        _fill(draw, face, features.brows(who, pose))
        _fill(draw, face, self._extras)
        _fill(draw, head, self._earrings)
        return np.asarray(picture.reduce(self._factor))

    def mouth_box(self, pose: Pose) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the widest open mouth, lips included, in pixels of a picture."""
        face = _shifted(self._matrices(pose)[0], pose, 1.0)
        reach = features.MOUTH_HALF_WIDTH[1] * 1.2
        top, bottom = features.MOUTH_Y - 0.25, features.MOUTH_Y + features.MOUTH_HEIGHT + 0.1
        corners = np.array([(-reach, top), (reach, top), (reach, bottom), (-reach, bottom)])
        left, upper = (moved(face, corners) / self._factor).min(axis=0)
        right, lower = (moved(face, corners) / self._factor).max(axis=0)
        return float(left), float(upper), float(right), float(lower)

    def _matrices(self, pose: Pose) -> tuple[Matrix, Matrix]:
        """From head units to drawn pixels, for the head and for the shoulders, which follow it a little."""
        side = self.size * self._factor
        x, y = HEAD_CENTRE
        scale = HALF_WIDTH * self.who.head_size * side
        head = placement((x + pose.x) * side, (y + pose.y) * side, scale * pose.scale, pose.angle)
        body = placement((x + 0.4 * pose.x) * side, (y + 0.3 * pose.y) * side, scale)
        return head, body


def render(who: Identity, pose: Pose, mouth: tuple[float, float], size: int) -> np.ndarray:
    """One picture (size, size, 3) uint8; for many of the same face keep a `Renderer`."""
    return Renderer(who, size).draw(pose, mouth)


def _shifted(matrix: Matrix, pose: Pose, depth: float) -> Matrix:
    """The map for parts `depth` in front of the head's outline, which move more when the head turns or nods."""
    shift = placement(0.075 * depth * pose.yaw, 0.06 * depth * pose.pitch, 1.0)
    result = matrix.copy()
    result[:, 2] += matrix[:, :2] @ shift[:, 2]
    return result


def _fill(draw: ImageDraw.ImageDraw, matrix: Matrix, parts: list[Shape]) -> None:
    for points, colour in parts:
        draw.polygon(np.rint(moved(matrix, points)).ravel().tolist(), fill=colour)
