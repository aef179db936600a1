"""The units keep their promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omniavatar_animate.adapter import AnimateAdapter
from omniavatar_animate.image import AnimateImage
from omniavatar_animate.motion import AnimateMotion
from omniavatar_animate.testing import ADAPTER
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.testing import CLIP, IMAGE_DIT

from omniavatar.engine.unit import PipelineUnit
from omniavatar.testing import check_unit
from tests.media.samples import write_lossless

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("unit", [AnimateImage, AnimateMotion])
def test_contract(unit: type[PipelineUnit], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    check_unit(
        unit,
        plan="animate-avatar-write-video",
        networks={
            "dit": (ImageDiT, IMAGE_DIT),
            "image_encoder": (ClipImageEncoder, CLIP),
            "animate_adapter": (AnimateAdapter, ADAPTER),
        },
        inputs={
            name: write_lossless(tmp_path / f"{name}.mkv", generator.integers(0, 256, (13, 48, 16, 3), np.uint8))
            for name in ("pose", "face")
        },
    )
