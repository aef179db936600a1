"""Two ranks make what one makes: tokens of clip, picture and past in shards, each frame heard where its tokens are.

This file is also the program of each rank: RANK, WORLD_SIZE and MASTER_* in the environment, the folder for its report
as argument.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omniavatar_s2v.adapter import S2VAdapter
from omniavatar_s2v.testing import ADAPTER, DIT
from torch import Tensor, nn

from omniavatar.distributed.world import ALONE, World, joined, place
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import build_plan
from omniavatar.engine.scopes import Request
from omniavatar.models.wan_dit import WanDiT
from omniavatar.plugins import discover
from omniavatar.resources import asset
from omniavatar.testing import FakeVAE, tiny
from tests.distributed.conftest import run_program
from tests.distributed.scenes import Recorder, worst_error
from tests.models.networks import randomized

pytestmark = pytest.mark.slow

RANKS = 2
TOLERANCE = 1e-5
PLANS = {"tokens": "sequence-parallel", "ring": "sequence-parallel(ring=2)", "branches": "guidance-parallel"}


class Models(tiny.TinyModels):
    """Tiny networks over a VAE that only averages; the transformer takes the engine's attention."""

    def __init__(self) -> None:
        adapter = randomized(S2VAdapter(**{**ADAPTER, "in_dim": 4, "cond_dim": 4}))
        super().__init__(vae=FakeVAE(), s2v_adapter=adapter)

    def load(self, role: str, **options: Any) -> nn.Module:
        if role == "dit":
            return randomized(WanDiT(**{**DIT, "in_dim": 4, "out_dim": 4}, attention=options["attention"]))
        return self.networks[role]


def made(expression: str, world: World) -> list[Tensor]:
    """A talking video in two clips of two and of one latent frame: 48 and 56 tokens."""
    settings = {"s2v-clips": {"clip_frames": 8}, "schedule": {"steps": 2}, "prompt": {"length": 16}}
    plan = build_plan(expression, discover().catalog(), settings)
    recorder = Recorder()
    engine = Engine(plan, Models(), world=world, observers=[recorder])
    inputs = {"image": asset("demo", "portrait.png"), "audio": asset("demo", "speech.flac")}
    engine.generate(Request(inputs=inputs, height=64, width=64, seconds=9 / 16, fps=16))
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
    world, plan = place(), "s2v-write-video"
    with joined(world, torch.device("cpu"), 20.0):
        alone = made(plan, ALONE)
        errors = {name: worst_error(made(f"{plan}+{units}", world), alone) for name, units in PLANS.items()}
    (folder / f"rank{world.rank}.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
