"""Who is in the picture and where: the fixed properties of one procedural face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from omniavatar_drawn.faces import palette
from omniavatar_drawn.faces.palette import Colour

Face = Literal["round", "oval", "square", "heart"]
Hair = Literal["short", "parted", "spiky", "curly", "afro", "bob", "long", "wavy", "bun", "ponytail", "shaved", "bald"]
Hat = Literal["beanie", "cap", "headscarf"]
Beard = Literal["moustache", "goatee", "beard"]
Glasses = Literal["round", "square"]
Clothes = Literal["t-shirt", "striped top", "v-neck", "shirt", "hoodie", "jacket", "dress"]
Wall = Literal["plain", "gradient", "stripes", "dots", "window", "shelf", "plant", "lights", "picture"]

_FACES: tuple[Face, ...] = ("round", "oval", "square", "heart")
_WALLS: tuple[Wall, ...] = ("plain", "gradient", "stripes", "dots", "window", "shelf", "plant", "lights", "picture")
_WOMEN: dict[Hair, float] = {"bob": 3, "long": 3, "wavy": 3, "bun": 2, "ponytail": 2, "curly": 1, "afro": 1, "short": 2}
_MEN: dict[Hair, float] = {
    "short": 3,
    "parted": 3,
    "spiky": 2,
    "curly": 2,
    "afro": 1,
    "shaved": 1,
    "bald": 1,
    "long": 1,
}
_CLOTHES_OF_BOTH: tuple[Clothes, ...] = ("t-shirt", "striped top", "v-neck", "shirt", "hoodie", "jacket")
_HAIR_WEIGHTS = (5, 4, 4, 2, 2, 4, 2, 1, 0.5, 0.5)
T = TypeVar("T")


class Shade(NamedTuple):
    """A colour with the name that captions use; `rgb` varies a little from face to face."""

    name: str
    rgb: Colour


@dataclass(frozen=True)
class Identity:
    """One person in one scene. Lengths are factors around 1."""

    seed: int
    person: Literal["woman", "man"]
    face: Face
    skin: Shade
    hair: Hair
    hair_colour: Shade
    eyes: Shade
    lips: Shade
    clothes: Clothes
    clothes_colour: Shade
    second_colour: Shade
    hat_colour: Shade
    wall: Wall
    wall_colour: Shade
    glasses: Glasses | None = None
    beard: Beard | None = None
    hat: Hat | None = None
    earrings: bool = False
    freckles: bool = False
    side: Literal[-1, 1] = 1
    head_size: float = 1.0
    eye_size: float = 1.0
    eye_spacing: float = 1.0
    brow_width: float = 1.0
    nose_size: float = 1.0

    @classmethod
    def from_seed(cls, seed: int) -> Identity:
        """The face number `seed`; the same on every machine."""
        draw = _Draw(seed)
        person: Literal["woman", "man"] = "woman" if draw.chance(0.5) else "man"
        woman = person == "woman"
        skin = draw.shade(palette.SKIN)
        hair = draw.weighted(_WOMEN if woman else _MEN)
        hair_colour = draw.apart(palette.HAIR, [(skin, 75)], _HAIR_WEIGHTS)
        wall_colour = draw.apart(palette.WALLS, [(skin, 55), (hair_colour, 70)])
        clothes_colour = draw.apart(palette.CLOTHES, [(wall_colour, 75), (skin, 70), (hair_colour, 50)])
        beard: Beard | None = None
        if not woman and draw.chance(0.4):
            beard = draw.one(("moustache", "goatee", "beard"))
        hat: Hat | None = None
        if draw.chance(0.15):
            hat = draw.one(("beanie", "cap", "headscarf") if woman else ("beanie", "cap"))
        natural = Shade("natural", palette.mix(skin.rgb, (184, 52, 66), 0.62 if woman else 0.42))
        return cls(
            seed=seed,
            person=person,
            face=draw.one(_FACES),
            skin=skin,
            hair=hair,
            hair_colour=hair_colour,
            eyes=draw.shade(palette.EYES),
            lips=draw.apart(palette.LIPSTICK, [(skin, 60)]) if woman and draw.chance(0.45) else natural,
            clothes=draw.one((*_CLOTHES_OF_BOTH, "dress") if woman else _CLOTHES_OF_BOTH),
            clothes_colour=clothes_colour,
            second_colour=draw.apart(palette.CLOTHES, [(clothes_colour, 90), (skin, 60)]),
            wall=draw.one(_WALLS),
            wall_colour=wall_colour,
            glasses=draw.one(("round", "square")) if draw.chance(0.3) else None,
            beard=beard,
            hat=hat,
            hat_colour=draw.apart(palette.CLOTHES, [(wall_colour, 75), (skin, 70), (hair_colour, 60)]),
            earrings=woman and hat != "headscarf" and draw.chance(0.35),
            freckles=draw.chance(0.12),
            side=draw.one((-1, 1)),
            head_size=draw.between(0.95, 1.05),
            eye_size=draw.between(0.92, 1.1),
            eye_spacing=draw.between(0.95, 1.06),
            brow_width=draw.between(0.7, 1.0) if woman else draw.between(1.0, 1.4),
            nose_size=draw.between(0.85, 1.2),
        )


class _Draw:
    """Random choices from one generator."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.Generator(np.random.PCG64([seed, 0xFACE]))

    def chance(self, probability: float) -> bool:
        return bool(self._random.random() < probability)

    def between(self, low: float, high: float) -> float:
        return float(self._random.uniform(low, high))

    def one(self, choices: tuple[T, ...]) -> T:
        return choices[int(self._random.integers(len(choices)))]

    def weighted(self, weights: dict[T, float]) -> T:
        chances = np.array(list(weights.values()))
        return list(weights)[int(self._random.choice(len(chances), p=chances / chances.sum()))]

    def shade(self, colours: dict[str, Colour], weights: tuple[float, ...] = ()) -> Shade:
        """One of the named colours, off by up to 5 in each channel."""
        name = self.weighted(dict(zip(colours, weights or (1.0,) * len(colours), strict=True)))
        red, green, blue = (int(np.clip(c + self._random.integers(-5, 6), 0, 255)) for c in colours[name])
        return Shade(name, (red, green, blue))

    def apart(
        self, colours: dict[str, Colour], others: list[tuple[Shade, float]], weights: tuple[float, ...] = ()
    ) -> Shade:
        """A named colour at least so far from each of the others."""
        far = [
            all(palette.distance(colour, other.rgb) >= least for other, least in others) for colour in colours.values()
        ]
        chances = [(weights[i] if weights else 1.0) if far[i] else 0.0 for i in range(len(colours))]
        return self.shade(colours, tuple(chances))
