"""Two ranks make what one makes: hints of a rank's own tokens, and the branch's weights sharded.

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
from omniavatar_vace.network import Vace
from omniavatar_vace.unit import VaceUnit
from torch import Tensor, nn

from omniavatar.distributed.world import ALONE, World, joined, place
from omniavatar.engine.engine import Engine
from omniavatar.engine.scopes import Request
from omniavatar.engine.unit import PipelineUnit
from omniavatar.testing import tiny
from omniavatar.units import Fsdp, GuidanceParallel, SequenceParallel
from tests.distributed.checks import local_share
from tests.distributed.conftest import run_program
from tests.distributed.scenes import HEADS, RandomModels, Recorder, Video, worst_error
from tests.media.samples import write_lossless
from tests.models.networks import randomized

pytestmark = pytest.mark.slow

RANKS = 2
TOLERANCE = 1e-5
WAYS: dict[str, list[type[PipelineUnit]]] = {
    "tokens": [SequenceParallel],
    "branches": [GuidanceParallel],
    "weights": [SequenceParallel, Fsdp],
}


class Networks(RandomModels):
    """The networks of the tiny model with random weights, and a branch beside the transformer."""

    roles = (*RandomModels.roles, "vace")

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        if role != "vace":
            return super().load(role, device=device, dtype=dtype, **constructor)
        numbers = {key: tiny.DIT[key] for key in ("dim", "ffn_dim", "eps", "patch_size")}
        layers: dict[str, Any] = {"in_dim": 96, "num_heads": HEADS, "layers": [0, 2]}
        network: nn.Module = randomized(Vace(**numbers, **layers, attention=constructor["attention"]), seed=1)
        return network


def made(world: World, control: str, *parallel: PipelineUnit) -> tuple[list[Tensor], Engine]:
    """A video of two windows; a call has 9 tokens, which two ranks do not divide."""
    video, recorder = Video(frames=13, height=48, width=16), Recorder()
    engine = Engine(video.plan(VaceUnit(), *parallel), Networks(), world=world, observers=[recorder])
    engine.set_up()
    inputs = {"control_video": control} if control else {}
    engine.generate(Request(inputs, height=video.height, width=video.width))
    return recorder.results, engine


def errors(world: World, control: str) -> dict[str, float]:
    """The error of every way to share the work, what the branch does at all, and the largest share of its weights."""
    alone, _ = made(ALONE, control)
    found = {"effect": worst_error(made(ALONE, "")[0], alone)}
    for name, units in WAYS.items():
        results, engine = made(world, control, *(unit() for unit in units))
        found[name] = worst_error(results, alone)
    return found | {"share": local_share(engine.model("vace"))}


def test_two_ranks_make_what_one_makes(tmp_path: Path) -> None:
    write_lossless(tmp_path / "pose.mkv", np.random.default_rng(0).integers(0, 256, (13, 48, 16, 3), np.uint8))
    run_program([__file__, str(tmp_path), str(tmp_path / "pose.mkv")], RANKS, tmp_path)
    for rank in range(RANKS):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["effect"] > 1e-3
        assert found["share"] < 1.05 / RANKS
        assert max(found[name] for name in WAYS) < TOLERANCE, found


def main(folder: Path, control: str) -> None:
    """Report the errors of this rank."""
    torch.set_num_threads(1)
    world = place()
    with joined(world, torch.device("cpu"), 20.0):
        (folder / f"rank{world.rank}.json").write_text(json.dumps(errors(world, control)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
