"""Two ranks make what one makes with two transformers: tokens shared, branches shared, weights sharded.

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
from omniavatar_moe.unit import Moe
from torch import Tensor, nn

from omniavatar.distributed.world import ALONE, World, joined, place
from omniavatar.engine.engine import Engine
from omniavatar.engine.scopes import Request
from omniavatar.engine.unit import PipelineUnit
from omniavatar.units import Fsdp, GuidanceParallel, SequenceParallel
from tests.distributed.checks import caching, local_share
from tests.distributed.conftest import run_program
from tests.distributed.scenes import RandomModels, Recorder, Texts, Video, build, worst_error
from tests.models.networks import randomized

pytestmark = pytest.mark.slow

RANKS = 2
TOLERANCE = 1e-5


class Experts(RandomModels):
    """The test networks with random weights, and a second transformer."""

    def __contains__(self, role: object) -> bool:
        return role == "dit2" or super().__contains__(role)

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        if role != "dit2":
            return super().load(role, device=device, dtype=dtype, **constructor).requires_grad_(False)
        network: nn.Module = randomized(build("dit", attention=constructor["attention"]), seed=1)
        return network.requires_grad_(False)


def made(world: World, moe: Moe, *parallel: PipelineUnit) -> tuple[list[Tensor], Engine]:
    """A video of two windows; a call has 9 tokens, which two ranks do not divide."""
    video, recorder = Video(frames=13, height=48, width=16, steps=6, units=[Texts(), caching()]), Recorder()
    engine = Engine(video.plan(moe, *parallel), Experts(), world=world, observers=[recorder])
    engine.set_up()
    engine.generate(Request(height=video.height, width=video.width))
    return recorder.results, engine


def errors(world: World) -> dict[str, float]:
    """The error of every way to share the work."""
    alone, _ = made(ALONE, Moe())
    ways: dict[str, tuple[Moe, list[PipelineUnit]]] = {
        "tokens": (Moe(), [SequenceParallel()]),
        "branches": (Moe(), [GuidanceParallel()]),
        "weights": (Moe(offload=False), [SequenceParallel(), Fsdp()]),
    }
    found = {}
    for name, (moe, parallel) in ways.items():
        results, engine = made(world, moe, *parallel)
        found[name] = worst_error(results, alone)
    assert max(local_share(engine.model(role)) for role in ("dit", "dit2")) < 1.05 / RANKS
    return found


def test_two_ranks_make_what_one_makes(tmp_path: Path) -> None:
    run_program([__file__, str(tmp_path)], RANKS, tmp_path)
    for rank in range(RANKS):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert len(found) == 3
        assert max(found.values()) < TOLERANCE, found


def main(folder: Path) -> None:
    """Report the errors of this rank."""
    torch.set_num_threads(1)
    world = place()
    with joined(world, torch.device("cpu"), 20.0):
        (folder / f"rank{world.rank}.json").write_text(json.dumps(errors(world)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
