"""The unit keeps its promises."""

from __future__ import annotations

import pytest
from omniavatar_ti2v.testing import DIT, VAE38
from omniavatar_ti2v.unit import Ti2v
from omniavatar_ti2v.wan_vae38 import WanVAE38

from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing import check_unit

pytestmark = pytest.mark.slow


def test_contract() -> None:
    check_unit(
        Ti2v,
        plan="wan-ti2v-write-video",
        networks={"dit": (WanDiT, DIT), "vae": (WanVAE38, VAE38)},
        size=(96, 32),
    )
