"""The unit keeps its promises, with a control video and with reference pictures in front of the video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omniavatar_vace.network import Vace
from omniavatar_vace.unit import VaceUnit

from omniavatar.resources import asset
from omniavatar.testing import check_unit
from omniavatar.testing.tiny import DIT
from tests.media.samples import write_lossless

pytestmark = pytest.mark.slow

BRANCH: dict[str, Any] = {
    **{key: DIT[key] for key in ("dim", "ffn_dim", "num_heads", "eps", "patch_size")},
    "in_dim": 96,
    "layers": [0, 2, 4],
}


@pytest.fixture
def control_video(tmp_path: Path) -> Path:
    pictures = np.random.default_rng(0).integers(0, 256, (13, 48, 16, 3), np.uint8)
    return write_lossless(tmp_path / "control.mkv", pictures)


def test_contract_of_a_control_video(control_video: Path) -> None:
    check_unit(VaceUnit, networks={"vace": (Vace, BRANCH)}, inputs={"control_video": control_video})


def test_contract_of_reference_pictures() -> None:
    pictures = {"reference_images": [asset("demo", "portrait.png")]}
    check_unit(VaceUnit, networks={"vace": (Vace, BRANCH)}, inputs=pictures)
