"""The units keep their promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omniavatar_fun.camera import FunCamera
from omniavatar_fun.control import FunControl
from omniavatar_fun.networks import CameraAdapter, ReferenceEmbedding
from omniavatar_fun.reference import FunReference
from omniavatar_fun.testing import CAMERA, CAMERA_DIT, CONTROL_DIT, REFERENCE
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.testing import CLIP

from omniavatar.engine.unit import PipelineUnit
from omniavatar.resources import asset
from omniavatar.testing import check_unit
from tests.media.samples import write_lossless

pytestmark = pytest.mark.slow

AVATAR = "i2v-avatar-write-video"


@pytest.mark.parametrize("unit", [FunControl, FunReference])
def test_contract_of_control(unit: type[PipelineUnit], tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (13, 48, 16, 3), np.uint8)
    check_unit(
        unit,
        plan=f"{AVATAR}+fun-control+fun-reference",
        networks={
            "dit": (ImageDiT, CONTROL_DIT),
            "image_encoder": (ClipImageEncoder, CLIP),
            "fun_reference": (ReferenceEmbedding, REFERENCE),
        },
        inputs={
            "control_video": write_lossless(tmp_path / "control.mkv", pictures),
            "reference_image": asset("demo", "portrait.png"),
        },
    )


def test_contract_of_camera() -> None:
    check_unit(
        FunCamera,
        plan=f"{AVATAR}+fun-camera",
        networks={
            "dit": (ImageDiT, CAMERA_DIT),
            "image_encoder": (ClipImageEncoder, CLIP),
            "fun_camera": (CameraAdapter, CAMERA),
        },
        inputs={"camera": "Left"},
    )
