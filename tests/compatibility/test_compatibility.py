"""Every pair of units works or is refused for a reason, and docs/compatibility.md says so; and what breaks is found."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.compatibility import outcomes
from tests.compatibility.cases import UNITS, Case, catalog, clash, refusal, union
from tests.compatibility.outcomes import BROKEN, REFUSED, WORKS, Outcome, attempt, outcome_of, same_in_other_order
from tests.compatibility.page import PAGE, render
from tests.compatibility.scenarios import SCENARIOS
from tests.compatibility.studio import Broken, Studio, Video, write_files
from tests.compatibility.table import Table, make_table

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_pair_works_or_is_refused_for_a_reason(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    assert not table.broken, "\n".join(table.broken)
    assert PAGE.read_text() == render(table), "run python -m tests.compatibility and look at what has changed"


def test_every_unit_of_ours_has_a_scenario() -> None:
    packages = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    bringing = {package.removeprefix("omniavatar-") for package in packages if brings_units(package)}
    assert {"builtin", *bringing} == SCENARIOS.keys()
    assert UNITS.keys() == catalog().units.keys()


def brings_units(package: str) -> bool:
    """Whether an installed package has units; one may bring a weight format alone."""
    module = importlib.import_module(package.replace("-", "_"))
    return hasattr(module, "omni_units")


# The plans that are tried


def test_what_stands_in_the_way_of_a_pair_is_left_out() -> None:
    assert set(union("image-to-video", "vace").units) == {
        *("prompt", "image-to-video", "audio", "audio-adapter", "fixed-frames", "vace"),
        *("guidance", "schedule", "euler", "transformer", "vae-decode"),
    }
    assert "reference-image" in union("vace", "motion").units


def test_the_reason_names_what_really_stands_in_the_way() -> None:
    assert clash("euler", "teacache") is None
    assert "'guidance' and 'moe-guidance' are both guidance rules" in str(refusal(("guidance", "moe-guidance")))
    assert "'s2v-transformer' and 'vace' cannot work together: its hints" in str(refusal(("vace", "s2v-clips")))


# What would be found


class Pictures(Studio):
    """Has its videos from the start, by the plan and the setting of teacache or the input that a case differs in."""

    def __init__(self, videos: Mapping[str, float]) -> None:
        super().__init__(Path(), Path())
        self.videos = videos

    def make(self, case: Case, *, alone: bool = False, twice: bool = False) -> Video:
        plan = "with" if "cfg-merge" in case.units or "teacache" in case.units else "without"
        off = case.settings.get("teacache", {}).get("threshold") == 1e-9
        value = self.videos["off" if off and plan == "with" else plan]
        return Video([filled(value)], filled(value))


def filled(value: float) -> Tensor:
    return torch.full((1, 3, 1, 2, 2), value)


@pytest.mark.parametrize(
    ("unit", "videos", "complaint"),
    [
        ("teacache", {"with": 2.0, "off": 1.0, "without": 1.0}, ""),
        ("teacache", {"with": 1.0, "off": 1.0, "without": 1.0}, "'teacache' has no effect"),
        ("teacache", {"with": 2.0, "off": 1.1, "without": 1.0}, "'teacache' changes the video by 1.0e-01 when it is"),
        ("cfg-merge", {"with": 1.0, "without": 1.0}, ""),
        ("cfg-merge", {"with": 1.0001, "without": 1.0}, "'cfg-merge' is exact and changes the video by 1.0e-04"),
    ],
)
def test_promises_that_are_not_kept_are_found(unit: str, videos: dict[str, float], complaint: str) -> None:
    found = attempt(union(unit, "transformer"), (unit, "transformer"), Pictures(videos))
    assert found.verdict == (BROKEN if complaint else WORKS)
    assert complaint in found.reason


def test_a_difference_between_orders_is_found() -> None:
    one, other = union("teacache", "cfg-merge"), union("cfg-merge", "euler")
    with pytest.raises(Broken, match="in this order of the units the video is another one"):
        same_in_other_order(one, other.without("cfg-merge"), Pictures({"with": 2.0, "without": 1.0}))


def test_errors_are_told_from_refusals() -> None:
    def refuse(text: str) -> Outcome:
        return outcomes.outcome(lambda: (_ for _ in ()).throw(outcomes.OmniError(text)))

    assert refuse("no room").verdict == REFUSED
    assert refuse("two\nlines").verdict == BROKEN
    assert outcomes.outcome(lambda: int("no number")).verdict == BROKEN
    assert Table({("a", "b"): refuse("two\nlines")}, {"preset": refuse("no room")}).broken == [
        "a + b: not a line that helps: OmniError('two\\nlines')",
        "preset: no room",
    ]


def test_one_pair_for_real(tmp_path: Path) -> None:
    write_files(tmp_path / "files")
    studio = Studio(tmp_path / "files", tmp_path)
    assert outcome_of(("teacache", "motion"), studio) == Outcome(WORKS)
    assert outcome_of(("guidance", "moe-guidance"), studio).verdict == REFUSED
    assert outcome_of(("moe", "moe-guidance"), studio) == Outcome(WORKS), "no plan has the second without the first"
