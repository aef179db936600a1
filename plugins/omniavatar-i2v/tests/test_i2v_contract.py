"""The unit keeps its promises, with one picture and with two."""

from __future__ import annotations

from typing import Any

import pytest
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.testing import CLIP, FLF2V_DIT, IMAGE_DIT
from omniavatar_i2v.unit import ImageToVideo

from omniavatar.resources import asset
from omniavatar.testing import check_unit

pytestmark = pytest.mark.slow

ENDING = {"end_image": asset("demo", "portrait.png")}


@pytest.mark.parametrize(("dit", "inputs"), [(IMAGE_DIT, {}), (FLF2V_DIT, ENDING)], ids=["i2v", "flf2v"])
def test_contract(dit: dict[str, Any], inputs: dict[str, Any]) -> None:
    check_unit(
        ImageToVideo,
        plan="i2v-avatar-write-video",
        networks={"dit": (ImageDiT, dit), "image_encoder": (ClipImageEncoder, CLIP)},
        inputs=inputs,
    )
