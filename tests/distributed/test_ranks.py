"""Several ranks make what one makes: real processes over gloo, real networks with random weights, float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.distributed.checks import CHECKS
from tests.distributed.conftest import WORST, Report

TOLERANCE = 1e-5


MARKS = {2: (), 4: (pytest.mark.slow,)}
"""Worlds of so many ranks; four take half a minute on two cores."""


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        pytest.param(ranks, name, marks=marks)
        for ranks, marks in MARKS.items()
        for name, check in CHECKS.items()
        if ranks in check.worlds
    ],
)
def test_ranks_make_what_one_makes(
    ranks: int, name: str, reports: Callable[[int], list[Report]], pytestconfig: pytest.Config
) -> None:
    outcomes = [report.get(name, {"failure": "not reached"}) for report in reports(ranks)]
    for rank, outcome in enumerate(outcomes):
        assert "failure" not in outcome, f"rank {rank}: {outcome['failure']}"
    errors = [outcome["error"] for outcome in outcomes]
    pytestconfig.stash.setdefault(WORST, {})[ranks, name] = max(errors)
    assert max(errors) < TOLERANCE
