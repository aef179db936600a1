"""The built-in units keep the promises that are asked of all others."""

from __future__ import annotations

import pytest

from omniavatar.engine.unit import PipelineUnit
from omniavatar.testing import check_unit
from omniavatar.units import BUILTIN, Compile, Fp8, GuidanceParallel, Soundtrack, UniPC, WriteVideo

pytestmark = pytest.mark.slow

SPREADS_ONLY = {GuidanceParallel: "it takes two ranks or more, see tests/distributed"}


@pytest.mark.timeout(400)  # every engine of `compile` compiles for itself
@pytest.mark.parametrize("unit", [unit for unit in BUILTIN if unit not in SPREADS_ONLY], ids=lambda unit: unit.name)
def test_contract(unit: type[PipelineUnit]) -> None:
    plans = {
        Compile: "default-write-video+compile(backend=eager)",
        WriteVideo: "default",
        Soundtrack: "default-write-video-audio-audio-adapter+soundtrack",
        UniPC: "default-write-video-euler+unipc",
        Fp8: "default-write-video+fp8(mode=storage)",  # the other mode makes steps of differences in the last bit
    }
    check_unit(unit, plan=plans.get(unit, f"default-write-video+{unit.name}"))
