"""The portrait of the demo can be drawn anew."""

from __future__ import annotations

import numpy as np
from omniavatar_drawn.demo import portrait

from omniavatar.media.image import load_image
from omniavatar.resources import asset


def test_the_portrait_is_the_face_that_the_program_draws() -> None:
    picture = load_image(asset("demo", "portrait.png"))
    assert np.abs(picture.astype(int) - np.asarray(portrait())).mean() < 1
