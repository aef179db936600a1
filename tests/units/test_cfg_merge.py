"""Branches in one batch: one call for all of them, and the same velocities."""

from __future__ import annotations

from typing import Any

import torch

from omniavatar.units import CfgMerge
from tests.scenes import Scene, denoising_units, fake_engine, fake_models, request, video_of


def run(scale: float, *units: Any) -> tuple[Any, Any]:
    """The video and the number of calls."""
    scene, models = Scene(frames=13, texts=(0.03, -0.01)), fake_models()
    fake_engine([scene, *denoising_units(steps=3, scale=scale), *units], models=models).generate(request())
    return video_of(scene), models.networks["dit"].calls


def test_two_branches_are_one_call_with_the_same_result() -> None:
    separate, calls = run(4.5)
    merged, merged_calls = run(4.5, CfgMerge())
    assert (calls, merged_calls) == (12, 6)
    torch.testing.assert_close(merged, separate)


def test_one_branch_stays_one_call() -> None:
    assert run(1.0, CfgMerge())[1] == run(1.0)[1] == 6
