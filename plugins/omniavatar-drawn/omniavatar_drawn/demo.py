"""Draws the portrait of the demo: `python -m omniavatar_drawn.demo FILE.png`. The same picture every time."""

from __future__ import annotations

import sys

from PIL import Image

from omniavatar_drawn.faces.clips import Clip

NUMBER = 9_500_007
"""Of a face that the built-in avatar was not trained on."""
SIDE = 512


def portrait() -> Image.Image:
    """A woman with wavy brown hair in a yellow hoodie, beside a plant."""
    return Image.fromarray(Clip.babbling(NUMBER, 2).pictures(SIDE, [0])[0])


if __name__ == "__main__":
    portrait().save(sys.argv[1], optimize=True)
