"""The units keep their promises."""

from __future__ import annotations

import pytest
from omniavatar_moe.guidance import MoeGuidance
from omniavatar_moe.unit import Moe

from omniavatar.engine.unit import PipelineUnit
from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing import check_unit
from omniavatar.testing.tiny import DIT

pytestmark = pytest.mark.slow

PLAN = "default-write-video-guidance+moe(boundary=0.95)+moe-guidance(scale=3, low_scale=2, audio_scale=4)"


@pytest.mark.parametrize("unit", [Moe, MoeGuidance])
def test_contract(unit: type[PipelineUnit]) -> None:
    check_unit(unit, plan=PLAN, networks={"dit2": (WanDiT, DIT)})
