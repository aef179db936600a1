"""`omni estimate` and `omni run --dry-run`: what a run would take, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL, Omni, tree


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
    ):
        assert word in out


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
