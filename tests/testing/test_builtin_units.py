"""The built-in units keep the promises that are asked of all others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omniavatar.engine.unit import PipelineUnit
from omniavatar.testing import check_unit
from omniavatar.units import (
    BUILTIN,
    Compile,
    DpmSolverMultistep,
    Fp8,
    GuidanceParallel,
    Lcm,
    SkipLayerGuidance,
    Soundtrack,
    UniPC,
    VideoToVideo,
    WriteVideo,
)

pytestmark = pytest.mark.slow

SPREADS_ONLY = {GuidanceParallel: "it takes two ranks or more, see tests/distributed"}


@pytest.mark.timeout(400)  # every engine of `compile` compiles for itself
@pytest.mark.parametrize("unit", [unit for unit in BUILTIN if unit not in SPREADS_ONLY], ids=lambda unit: unit.name)
def test_contract(unit: type[PipelineUnit]) -> None:
    plans = {
        Compile: "default-write-video+compile(backend=eager)",
        WriteVideo: "default",
        Soundtrack: "default-write-video-audio-audio-adapter+soundtrack",
        SkipLayerGuidance: "default-write-video+skip-layer-guidance(blocks=[1])",
        UniPC: "default-write-video-euler+unipc",
        DpmSolverMultistep: "default-write-video-euler+dpmpp-2m",
        Lcm: "default-write-video-euler+lcm",
        Fp8: "default-write-video+fp8(mode=storage)",  # the other mode makes steps of differences in the last bit
    }
    inputs: dict[type[PipelineUnit], dict[str, Any]] = {
        VideoToVideo: {"video": (np.full((20, 48, 16, 3), 90, np.uint8), 25)}
    }
    check_unit(unit, plan=plans.get(unit, f"default-write-video+{unit.name}"), inputs=inputs.get(unit))
