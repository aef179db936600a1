"""The units keep their promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omniavatar_s2v.adapter import S2VAdapter
from omniavatar_s2v.audio import S2VAudio
from omniavatar_s2v.clips import S2VClips
from omniavatar_s2v.image import S2VImage
from omniavatar_s2v.pose import S2VPose
from omniavatar_s2v.testing import ADAPTER, DIT
from omniavatar_s2v.transformer import S2VTransformer

from omniavatar.engine.unit import PipelineUnit
from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing import FakeVAE, check_unit
from tests.media.samples import write_lossless

pytestmark = pytest.mark.slow

NETWORKS = {
    "dit": (WanDiT, {**DIT, "in_dim": 4, "out_dim": 4}),
    "s2v_adapter": (S2VAdapter, {**ADAPTER, "in_dim": 4, "cond_dim": 4}),
    "vae": (FakeVAE, {}),
}


@pytest.fixture
def pose(tmp_path: Path) -> Path:
    pictures = np.random.default_rng(0).integers(0, 256, (13, 64, 64, 3), np.uint8)
    return write_lossless(tmp_path / "pose.mkv", pictures)


@pytest.mark.parametrize("unit", [S2VImage, S2VAudio, S2VPose, S2VClips, S2VTransformer])
def test_contract(unit: type[PipelineUnit], pose: Path) -> None:
    check_unit(
        unit,
        plan="s2v-write-video+s2v-clips(clip_frames=8)",
        networks=NETWORKS,
        inputs={"pose": pose},
        size=(64, 64),
    )
