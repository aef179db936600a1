"""What the documentation says of benchmarks is what they say."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cost_model import RESULTS, Links, check, table
from benchmarks.overhead import Prepared
from benchmarks.peers import THEIRS, calls
from benchmarks.synthetic import RandomModels
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


@pytest.mark.slow
def test_the_bare_networks_make_what_the_engine_makes() -> None:
    prepared = Prepared()
    with torch.inference_mode():
        ways = [prepared.by_engine(prepared.window()), prepared.by_hand(prepared.window())]
    torch.testing.assert_close(*ways)


def test_training_is_measured_with_and_without_checkpointing() -> None:
    for expression in WAYS.values():
        result = measure("tiny", expression, updates=1, shape=(32, 32, 17))
        assert result["seconds_update"] > 0
        assert result["trained_parameters"] > 1_000_000


def test_diffusers_and_we_are_measured_in_turn_and_what_does_not_run_is_said() -> None:
    rows, refused = calls(RandomModels("tiny", blocks=4), ["eager", "attention(kernel=cudnn)"], 1, torch.device("cpu"))
    assert [row["way"] for row in rows] == [THEIRS, "omniavatar, eager"]
    assert rows[1]["share"] == pytest.approx(rows[1]["seconds"] / rows[0]["seconds"], rel=0.01)
    assert "does not run on cpu" in refused["attention(kernel=cudnn)"]
