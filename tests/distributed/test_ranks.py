"""Several ranks make what one makes: real processes over gloo, real networks with random weights, float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.distributed.checks import CHECKS
from tests.distributed.conftest import WORST, Report

TOLERANCE = 1e-5


MARKS = {"quick": (), "two": (pytest.mark.slow,), "four": (pytest.mark.slow,)}
"""By group of checks; the slow ones take half a minute each on two cores."""


@pytest.mark.parametrize(
    ("group", "name"),
    [
        pytest.param(group, name, marks=marks)
        for group, marks in MARKS.items()
        for name, check in CHECKS.items()
        if group in check.groups
    ],
)
def test_ranks_make_what_one_makes(
    group: str, name: str, reports: Callable[[str], list[Report]], pytestconfig: pytest.Config
) -> None:
    outcomes = [report.get(name, {"failure": "not reached"}) for report in reports(group)]
    for rank, outcome in enumerate(outcomes):
        assert "failure" not in outcome, f"rank {rank}: {outcome['failure']}"
    errors = [outcome["error"] for outcome in outcomes]
    pytestconfig.stash.setdefault(WORST, {})[group, name] = max(errors)
    assert max(errors) < TOLERANCE
