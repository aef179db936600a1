"""The built-in units keep the promises that are asked of all others."""

from __future__ import annotations

import pytest

from omniavatar.engine.unit import PipelineUnit
from omniavatar.testing import check_unit
from omniavatar.units import BUILTIN, GuidanceParallel, WriteVideo

pytestmark = pytest.mark.slow

SPREADS_ONLY = {GuidanceParallel: "it takes two ranks or more, see tests/distributed"}


@pytest.mark.parametrize("unit", [unit for unit in BUILTIN if unit not in SPREADS_ONLY], ids=lambda unit: unit.name)
def test_contract(unit: type[PipelineUnit]) -> None:
    without_file = f"default-write-video+{unit.name}"
    check_unit(unit, plan="default" if unit is WriteVideo else without_file)
