"""`omni estimate` and `omni run --dry-run`: what a run would take, and nothing is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from omniavatar.cli.estimates import summary
from omniavatar.estimate.report import Estimate, Phase
from omniavatar.estimate.timing import Seconds
from tests.cli.conftest import SMALL, Omni, tree


@pytest.mark.slow
def test_an_estimate_is_the_figures_of_the_run(omni: Omni, folder: Path) -> None:
    options = ("--json", "--quiet", "-o", "a.mp4", *SMALL)
    foreseen = json.loads(omni("estimate", *options).out)
    assert json.loads(omni("run", "--dry-run", *options).out).keys() == foreseen.keys()
    assert tree(folder) == set()
    made = json.loads(omni("run", *options).out)
    same = ("frames", "fps", "height", "width", "windows", "steps", "transformer_calls", "units", "device", "dtype")
    assert {name: foreseen[name] for name in same} == {name: made[name] for name in same}
    assert foreseen["peak_rss_mib"] > 100
    assert foreseen["left_out"] == ["write-video"]


@pytest.mark.slow
def test_a_table_of_networks_and_phases(omni: Omni) -> None:
    out = omni("estimate", "--quiet", *SMALL).out
    for word in (
        "dit",
        "text_encoder",
        "prepare",
        "denoise",
        "decode",
        "total",
        "4 transformer calls of up to 12 tokens",
        "not included: loading the models, write-video",
    ):
        assert word in out
    assert re.search(r"^about [\d.]+ s, [\d.]+ to [\d.]+ s, for 0.5 s of video$", out, re.MULTILINE)


def estimate(seconds: Seconds) -> Estimate:
    """An estimate of 50 frames that take so long."""
    counts = dict.fromkeys(("windows", "steps", "transformer_calls", "transformer_calls_skipped", "tokens"), 1)
    return Estimate(
        units=[],
        left_out=[],
        device="cpu",
        dtype="float32",
        frames=50,
        fps=25,
        height=64,
        width=64,
        **counts,
        branches=["positive"],
        networks=[],
        phases=[Phase("denoise", seconds, None)],
        peak_device=None,
        total_device=None,
        peak_host=None,
    )


def test_a_stable_time_has_a_narrow_range() -> None:
    first, second, *_ = summary(estimate(Seconds(16.04, 15.5, 16.5)))
    assert first == "about 16.0 s, 15.5 to 16.5 s, for 2.0 s of video"
    assert second.startswith("50 frames")


def test_a_wide_range_says_why() -> None:
    first, second, *_ = summary(estimate(Seconds(75.0, 20.0, 120.0)))
    assert first == "about 1:15, 20.0 s to 2:00, for 2.0 s of video"
    assert second == (
        "other work keeps this machine busy, so times vary: beside it a run takes up to 2:00, without it about 20.0 s"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("estimate", "--gpus", "2", "--device", "cpu"), "an estimate is about one GPU; leave --gpus out"),
        (("estimate", "--image", "none.png"), "none.png"),
        (("estimate", "--units", "default+teacach"), "unknown unit or preset 'teacach'"),
        (("estimate", "--stepz", "3"), "unknown option '--stepz'"),
        (("estimate", "--model", "none.safetensors"), "none.safetensors"),
        (("run", "--dry-run", "-o", "a.avi"), "give a name that ends in .mp4"),
    ],
)
def test_wrong_input_is_one_line(omni: Omni, folder: Path, arguments: tuple[str, ...], complaint: str) -> None:
    outcome = omni(*arguments, *SMALL, "--quiet")
    assert outcome.code == 2
    assert complaint in outcome.error
    assert tree(folder) == set()
