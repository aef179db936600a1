"""What the documentation says of benchmarks is what they say."""

from __future__ import annotations

import pytest

from benchmarks.cost_model import RESULTS, Links, check, table
from benchmarks.training import WAYS, measure
from tests.distributed.conftest import ROOT


def test_the_table_of_grids_is_the_models() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert "\n".join(table("14b", Links())) in page


@pytest.mark.parametrize("size", ["14b", "1.3b"])
def test_the_model_is_as_near_to_what_was_measured_as_stated(size: str) -> None:
    off = check(RESULTS / f"scaling-{size}.json")
    assert len(off) >= 5
    assert max(map(abs, off.values())) < 0.02


def test_training_is_measured_with_and_without_checkpointing() -> None:
    for expression in WAYS.values():
        result = measure("tiny", expression, updates=1, shape=(32, 32, 17))
        assert result["seconds_update"] > 0
        assert result["trained_parameters"] > 1_000_000
