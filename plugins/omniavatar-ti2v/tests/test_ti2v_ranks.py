"""Two ranks make what one makes: the tokens with times of their own in shards, the rows of the VAE shared.

This file is also the program of each rank: RANK, WORLD_SIZE and MASTER_* in the environment, the folder for its report
as argument.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omniavatar_ti2v.testing import DIT, VAE38
from omniavatar_ti2v.wan_vae38 import WanVAE38
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
from tests.models.networks import randomized

pytestmark = pytest.mark.slow

RANKS = 2
TOLERANCE = 1e-5
PLANS = {
    "tokens": "sequence-parallel",
    "tokens and rows": "sequence-parallel+vae-parallel",
    "branches and rows": "guidance-parallel+vae-parallel",
}


class Models(tiny.TinyModels):
    """The tiny networks, with a transformer and a VAE of 48 channels; the transformer takes the engine's attention."""

    def __init__(self) -> None:
        super().__init__(vae=randomized(WanVAE38(**VAE38)))

    def load(self, role: str, **options: Any) -> nn.Module:
        if role == "dit":
            return randomized(WanDiT(**{**DIT, "num_layers": 2}, attention=options["attention"]))
        return self.networks[role]

    def config(self, role: str) -> Mapping[str, Any]:
        return {**super().config(role), **(DIT if role == "dit" else {})}


def made(expression: str, world: World) -> list[Tensor]:
    """A video of 13 frames in two windows; a call has 3 x 3 x 1 tokens, which two ranks do not divide."""
    settings = {"fixed-frames": {"window_frames": 9, "overlap": 5}, "schedule": {"steps": 2}, "prompt": {"length": 32}}
    plan = build_plan(expression, discover().catalog(), settings)
    recorder = Recorder()
    engine = Engine(plan, Models(), world=world, observers=[recorder])
    image = asset("demo", "portrait.png")
    engine.generate(Request(inputs={"image": image}, height=96, width=32, seconds=13 / 25))
    return recorder.results


def test_two_ranks_make_what_one_makes(tmp_path: Path) -> None:
    run_program([__file__, str(tmp_path)], RANKS, tmp_path)
    for rank in range(RANKS):
        errors = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert errors.keys() == PLANS.keys()
        assert max(errors.values()) < TOLERANCE, errors


def main(folder: Path) -> None:
    """Compare with all ranks, plan by plan."""
    torch.set_num_threads(1)
    world, plan = place(), "wan-ti2v-write-video"
    with joined(world, torch.device("cpu"), 20.0):
        alone = made(plan, ALONE)
        errors = {name: worst_error(made(f"{plan}+{units}", world), alone) for name, units in PLANS.items()}
    (folder / f"rank{world.rank}.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
