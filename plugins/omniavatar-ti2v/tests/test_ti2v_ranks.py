"""Two ranks make what one makes: the tokens with times of their own in shards, the rows of the VAE shared.

This file is also the program of each rank: RANK, WORLD_SIZE and MASTER_* in the environment, the folder for its report
as argument.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omniavatar_ti2v.testing import DIT, VAE38
from omniavatar_ti2v.wan_vae38 import WanVAE38
from torch import Tensor, nn

from omniavatar.distributed.world import ALONE, World, joined, place
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan, build_plan
from omniavatar.engine.scopes import Request, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wan_dit import WanDiT
from omniavatar.plugins import discover
from omniavatar.resources import asset
from omniavatar.testing import tiny
from tests.distributed.conftest import free_port
from tests.distributed.scenes import worst_error
from tests.models.networks import randomized

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
RANKS = 2
TOLERANCE = 1e-5
PLANS = {
    "tokens": "sequence-parallel",
    "tokens and rows": "sequence-parallel+vae-parallel",
    "branches and rows": "guidance-parallel+vae-parallel",
}


class Results(PipelineUnit):
    """The latents and pictures of all windows."""

    name = "results"

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    @hookimpl(trylast=True)
    def end_window(self, window: Window) -> None:
        self.tensors += [window.latents.clone(), window["frames"].clone()]


class Models(tiny.TinyModels):
    """The tiny networks, with a transformer and a VAE of 48 channels; the transformer takes the engine's attention."""

    def __init__(self) -> None:
        super().__init__(vae=randomized(WanVAE38(**VAE38)))

    def load(self, role: str, **options: Any) -> nn.Module:
        if role == "dit":
            return randomized(WanDiT(**{**DIT, "num_layers": 2}, attention=options["attention"]))
        return self.networks[role]


def made(expression: str, world: World) -> list[Tensor]:
    """A video of 13 frames in two windows; a call has 3 x 3 x 1 tokens, which two ranks do not divide."""
    settings = {"fixed-frames": {"window_frames": 9, "overlap": 5}, "euler": {"steps": 2}, "prompt": {"length": 32}}
    plan = build_plan(expression, discover().catalog(), settings)
    results = Results()
    engine = Engine(Plan((*plan.units, results)), Models(), world=world)
    image = asset("demo", "portrait.png")
    engine.generate(Request(inputs={"image": image}, height=96, width=32, seconds=12 / 25))
    return results.tensors


def start(rank: int, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """This file as the program of one rank; its complaints go to a file."""
    place = {"RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": ROOT}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in place.items()}}
    with (folder / f"rank{rank}.err").open("w") as complaints:
        return subprocess.Popen([sys.executable, __file__, str(folder)], env=environment, stderr=complaints)


def test_two_ranks_make_what_one_makes(tmp_path: Path) -> None:
    port = free_port()
    processes = [start(rank, port, tmp_path) for rank in range(RANKS)]
    try:
        codes = [process.wait(60) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * RANKS, "".join(path.read_text() for path in tmp_path.glob("*.err"))
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
