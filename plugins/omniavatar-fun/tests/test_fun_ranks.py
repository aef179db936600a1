"""Two ranks make what one makes: a frame of the reference in front of the video's tokens, and rays added to them.

This file is also the program of each rank: RANK, WORLD_SIZE and MASTER_* in the environment, the folder for its report
and the control video as arguments.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_fun.networks import CameraAdapter, ReferenceEmbedding
from omniavatar_fun.testing import CAMERA, CAMERA_DIT_22, CONTROL_DIT_22, REFERENCE
from torch import Tensor, nn

from omniavatar.distributed.world import ALONE, World, joined, place
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import build_plan
from omniavatar.engine.scopes import Request
from omniavatar.models.wan_dit import WanDiT
from omniavatar.plugins import discover
from omniavatar.resources import asset
from omniavatar.testing import tiny
from tests.distributed.conftest import run_program
from tests.distributed.scenes import Recorder, worst_error
from tests.media.samples import write_lossless
from tests.models.networks import randomized

pytestmark = pytest.mark.slow

RANKS = 2
TOLERANCE = 1e-5
WAYS = ("sequence-parallel", "sequence-parallel(ring=2)", "guidance-parallel")
PORTRAIT = asset("demo", "portrait.png")


class Models(tiny.TinyModels):
    """Tiny networks; the transformer takes the engine's attention."""

    def __init__(self, config: dict[str, Any]) -> None:
        reference = randomized(ReferenceEmbedding(**REFERENCE), seed=1)
        camera = randomized(CameraAdapter(**CAMERA), seed=2)
        super().__init__(dit=nn.Identity(), fun_reference=reference, fun_camera=camera)
        self.dit_config = config

    def config(self, role: str) -> Any:
        return self.dit_config if role == "dit" else super().config(role)

    def load(self, role: str, **options: Any) -> nn.Module:
        if role == "dit":
            return randomized(WanDiT(**self.dit_config, attention=options["attention"]))
        return self.networks[role]


def made(expression: str, config: dict[str, Any], inputs: dict[str, Any], world: World) -> list[Tensor]:
    """A video of two windows; a call has 9 or 12 tokens."""
    settings: dict[str, dict[str, Any]] = {
        "fixed-frames": {"window_frames": 9, "overlap": 5},
        "schedule": {"steps": 2},
        "prompt": {"length": 16},
    }
    plan = build_plan(expression, discover().catalog(), settings)
    recorder = Recorder()
    engine = Engine(plan, Models(config), world=world, observers=[recorder])
    engine.generate(Request({"image": PORTRAIT, **inputs}, height=48, width=16, seconds=13 / 25))
    return recorder.results


def errors(control: Path, world: World) -> dict[str, float]:
    """The error of every way to share the work, for both kinds of networks."""
    controlled = {"control_video": control, "reference_image": PORTRAIT}
    found = {}
    for preset, config, inputs in (
        ("fun-reference-video", CONTROL_DIT_22, controlled),
        ("fun-camera-video", CAMERA_DIT_22, {"camera": "LeftUp"}),
    ):
        plan = f"{preset}+fixed-frames-write-video"
        alone = made(plan, config, inputs, ALONE)
        for way in WAYS:
            found[f"{preset}+{way}"] = worst_error(made(f"{plan}+{way}", config, inputs, world), alone)
    return found


def test_two_ranks_make_what_one_makes(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (13, 48, 16, 3), np.uint8)
    control = write_lossless(tmp_path / "control.mkv", pictures)
    run_program([__file__, str(tmp_path), str(control)], RANKS, tmp_path, seconds=100)
    for rank in range(RANKS):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert len(found) == 2 * len(WAYS)
        assert max(found.values()) < TOLERANCE, found


def main(folder: Path, control: Path) -> None:
    """Compare with all ranks, plan by plan."""
    torch.set_num_threads(1)
    world = place()
    with joined(world, torch.device("cpu"), 20.0):
        found = errors(control, world)
    (folder / f"rank{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
