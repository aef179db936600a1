"""The unit keeps its promises."""

from __future__ import annotations

import pytest
from omniavatar_motion.network import MotionController
from omniavatar_motion.unit import Motion

from omniavatar.testing import check_unit
from omniavatar.testing.tiny import DIT

pytestmark = pytest.mark.slow


def test_contract() -> None:
    controller = (MotionController, {"freq_dim": 32, "dim": DIT["dim"]})
    check_unit(Motion, networks={"motion_controller": controller}, inputs={"motion_bucket_id": 80})
