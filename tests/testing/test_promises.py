"""All built-in units keep the promises that are quickly checked: many of them in a plan together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from omniavatar.engine.plan import build_plan
from omniavatar.models.wan_dit import WanDiT
from omniavatar.plugins import discover
from omniavatar.testing import FakeVAE, check_plan
from omniavatar.testing.stage import SETTINGS, Network
from omniavatar.testing.tiny import DIT
from omniavatar.units import BUILTIN, Euler

NETWORKS: Mapping[str, Network] = {
    "dit": (WanDiT, {**DIT, "in_dim": 9, "out_dim": 4}),
    "vae": (FakeVAE, {}),
}
PLANS = (
    "default+teacache+cfg-merge+nag+attention+smooth-borders+vae-parallel+fsdp",
    "default-write-video-euler+unipc+magcache+guidance-interval+video-to-video+sequence-parallel+lora",
    "default-write-video-euler+dpmpp-2m+first-block-cache+cfg-zero-star+offload",
    "default-write-video-euler+lcm+sliding-window+skip-layer-guidance(blocks=[1])+gradient-checkpointing",
    "default-write-video-audio-audio-adapter+soundtrack+fp8(mode=storage)+disk-offload",
)
ELSEWHERE = {
    "guidance-parallel": "it takes two ranks or more, see tests/distributed",
    "compile": "every engine compiles for itself, see test_builtin_units",
}


@pytest.mark.parametrize("plan", PLANS)
def test_units_keep_their_promises(plan: str) -> None:
    inputs: dict[str, Any] = {"video": (np.full((20, 48, 16, 3), 90, np.uint8), 25)}
    check_plan(plan, networks=NETWORKS, inputs=inputs if "video-to-video" in plan else {})


def test_every_built_in_unit_is_in_a_plan() -> None:
    catalog = discover().catalog()
    names = {name for plan in PLANS for name in build_plan(plan, catalog, SETTINGS).names}
    assert names == {unit.name for unit in BUILTIN} - ELSEWHERE.keys()


def test_a_broken_promise_names_plan_and_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Euler, "provides", ("speed",))
    plan = "default-write-video"
    with pytest.raises(AssertionError, match="unit 'euler' of 'default-write-video' breaks the promise 'values': it p"):
        check_plan(plan, networks=NETWORKS)
