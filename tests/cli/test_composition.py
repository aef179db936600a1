"""Plans with units left out: each makes a video, or is refused with one reason before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from omniavatar.media.video import probe_video
from tests.cli.conftest import Omni, tree

SMALL = ("--seconds", "0.36", "--size", "32x32", "--schedule.steps", "2")

WORK = {
    "silence": "default-audio",
    "no audio layers": "default-audio-adapter",
    "no sound": "default-audio-audio-adapter",
    "no picture limits": "default-fixed-frames",
    "no LoRA": "default-lora",
    "cached": "default+teacache(threshold=5)",
    "as the original": "original",
}
SLOW = (pytest.mark.slow,)
REFUSED = {
    "default-prompt": "unit 'transformer' needs 'prompt_embedding', which no unit of the plan provides",
    "default-guidance": "the plan has no guidance; add a rule such as +guidance",
    "default+teacache-transformer": "the plan has no network; add one such as +transformer",
    "default-euler": "the plan has no solver; add one such as +euler",
    "default-vae-decode": "unit 'fixed-frames' needs 'previous.frames', which no unit of the plan provides",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "expression",
    [pytest.param(text, id=name, marks=SLOW if text == "original" else ()) for name, text in WORK.items()],
)
def test_it_makes_a_video(omni: Omni, folder: Path, expression: str) -> None:
    sizes = ("--reference-image.sizes", "[[32, 32]]")
    outcome = omni("run", "--units", expression, "--prompt", "hi", *SMALL, *sizes, "-o", "talk.mp4")
    assert outcome.code == 0, outcome.err
    assert probe_video(folder / "talk.mp4").frames == (10 if expression == "original" else 9)


@pytest.mark.parametrize(("expression", "reason"), REFUSED.items())
def test_it_is_refused_before_loading(omni: Omni, folder: Path, expression: str, reason: str) -> None:
    for command in (("run", "--units", expression, "-o", "talk.mp4"), ("units", "plan", expression)):
        outcome = omni(*command)
        assert outcome.code == 2
        assert outcome.err == f"omni: {reason}\n"
        assert tree(folder) == set()


def test_a_plan_of_additions_alone_is_taken_for_one(omni: Omni) -> None:
    meant = "did you mean '+teacache+cfg-merge', which adds to the model's own plan?"
    for command in (("run", "--units", "teacache+cfg-merge"), ("units", "plan", "teacache+cfg-merge")):
        assert omni(*command).error == f"the plan has no schedule; add one such as +schedule; {meant}"
    outcome = omni("run", "--units", "teacache", "-o", "talk.mp4")
    assert outcome.error == ("-o: no unit of the plan takes it; add one that does with --units 'teacache+write-video'")


def test_a_plan_that_writes_nothing_says_so(omni: Omni, folder: Path) -> None:
    outcome = omni("run", "--units", "default-write-video", "--prompt", "hi", *SMALL)
    assert outcome.code == 0
    assert outcome.out.startswith("no file, since no unit writes one")
    assert tree(folder) == set()


def test_a_model_that_no_unit_uses_is_named(omni: Omni, folder: Path) -> None:
    outcome = omni("run", "--units", "default-audio-audio-adapter", "--prompt", "hi", *SMALL, "-o", "talk.mp4")
    assert "not used by this plan, though the model files have it: audio_adapter, audio_encoder" in outcome.err
