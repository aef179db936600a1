"""Two ranks learn what one learns from the same samples, with whole and with sharded weights, and go on when stopped.

This file is also the program of each rank: RANK, WORLD_SIZE and MASTER_* in the environment, the way and a folder as
arguments.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omniavatar.distributed.world import ALONE, World, joined, place
from omniavatar.errors import InputError
from omniavatar.testing.tiny import TinyModels
from omniavatar.training.diffusion import DiffusionTask
from omniavatar.training.gradients import Batch
from omniavatar.training.samples import CachedSamples, CacheWriter, write_origin
from omniavatar.training.sharded import local
from omniavatar.training.takes import Choice, Take
from omniavatar.training.trained import DELTA, WHOLE
from omniavatar.training.trainer import LOG, STATE, Settings, Trainer, generator
from tests.distributed.conftest import run_program
from tests.training.scenes import Striped, config, opened, plan

pytestmark = pytest.mark.slow

EVERYTHING = {"weights": ["dit.*", "audio_adapter.*"]}
WAYS = {
    "whole": ("default", EVERYTHING),
    "sharded": ("default+fsdp", EVERYTHING),
    "sharded with LoRA": ("default+fsdp", {"lora": {"rank": 4, "alpha": 4}, "weights": ["audio_adapter.*"]}),
}
STEPS = 4


class Numbered(DiffusionTask):
    """Ranks take turns with the numbered batches that one rank takes one after the other."""

    taken = 0

    def batch(self, draw: torch.Generator) -> Batch:
        world = self.engine.world
        number = self.taken * world.size + world.rank
        self.taken += 1
        return super().batch(generator(99, number))


def task(way: str, folder: Path, world: World, taken: int = 0) -> Numbered:
    expression, train = WAYS[way]
    settings = config(folder, train=train, merged=True)
    cpu = torch.device("cpu")
    run = opened(settings, plan(expression), TinyModels(), device=cpu, dtype=torch.float32, world=world)
    made = run.task(CachedSamples.open(folder / "cache", run.origin(), "cpu"))
    numbered = Numbered(made.engine, made.split, made.samples, made.trained, made.config)
    numbered.taken = taken
    return numbered


def learn(way: str, folder: Path, world: World) -> None:
    """In one piece and in two; the results lie in the folders "whole" and "parts"."""
    accumulate = 2 // world.size
    settings: dict[str, Any] = {"learning_rate": 1e-3, "log_every": 1, "ema": 0.8, "accumulate": accumulate}
    name = "ranks" if world.size > 1 else "one"
    output = folder / way / name
    Trainer(task(way, folder, world), Settings(steps=STEPS, **settings), output / "whole", world=world).run()
    first = Trainer(task(way, folder, world), Settings(steps=STEPS, **settings), output / "parts", world=world)
    for _ in range(2):
        first.update()
    first.checkpoint()
    rest = task(way, folder, world, taken=2 * accumulate)
    Trainer(rest, Settings(steps=STEPS, **settings), output / "parts", world=world).run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one rank and what two ranks learn, in every way."""
    folder = tmp_path_factory.mktemp("ranks")
    run = opened(
        config(folder, train=EVERYTHING), plan(), TinyModels(), device=torch.device("cpu"), dtype=torch.float32
    )
    with CacheWriter(folder / "cache") as writer:
        for number in range(4):
            writer.add(run.preparation().sample(Take.of(Striped(), Choice(number + 4, 9, 5, 20))), str(number))
    write_origin(folder / "cache", run.origin())
    for way in WAYS:
        learn(way, folder, ALONE)
    run_program(["-m", "tests.training.test_several_ranks", str(folder)], 2, folder, seconds=240)
    return folder


def results(folder: Path) -> dict[str, torch.Tensor]:
    """What was saved: all weights, and what was trained where that is not all."""
    delta: dict[str, torch.Tensor] = {}
    if (folder / DELTA).exists():
        delta = torch.load(folder / DELTA, weights_only=True)
    return {**load_file(folder / WHOLE), **delta}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pieces", ["whole", "parts"])
def test_two_ranks_learn_what_one_learns(folder: Path, way: str, pieces: str) -> None:
    one, two = (results(folder / way / name / pieces) for name in ("one", "ranks"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-5, rtol=2e-2, msg=f"{name} differs")


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_run_of_two_ranks_goes_on_bit_by_bit(folder: Path, way: str) -> None:
    whole, parts = (results(folder / way / "ranks" / pieces) for pieces in ("whole", "parts"))
    assert all(parts[name].equal(value) for name, value in whole.items())
    lines = [json.loads(line)["loss"] for line in (folder / way / "ranks" / "whole" / LOG).read_text().splitlines()]
    rest = [json.loads(line)["loss"] for line in (folder / way / "ranks" / "parts" / LOG).read_text().splitlines()]
    assert rest == lines[2:]


def test_a_checkpoint_that_is_written_late_is_awaited(folder: Path) -> None:
    assert [(folder / f"late{rank}").read_text() for rank in range(2)] == ["1", "1"]


def test_a_checkpoint_that_one_rank_sees_only_is_refused_on_all(folder: Path) -> None:
    for rank in range(2):
        assert "some of the 2 ranks do not see" in (folder / f"own{rank}" / "refusal").read_text()


@pytest.mark.parametrize("way", ["whole", "sharded"])
def test_a_stop_that_one_rank_is_asked_for_keeps_the_steps_of_all(folder: Path, way: str) -> None:
    steps = [json.loads((folder / "asked" / way / f"{rank}.json").read_text()) for rank in range(2)]
    assert steps == [[2, False]] * 2
    assert torch.load(folder / "asked" / way / STATE, weights_only=True)["step"] == 2


@pytest.mark.parametrize("way", ["whole", "sharded"])
def test_bad_numbers_of_one_rank_make_all_skip_an_update(folder: Path, way: str) -> None:
    assert [(folder / "bad" / way / f"{rank}").read_text() for rank in range(2)] == ["1 True"] * 2


def test_the_log_has_the_mean_loss_of_all_ranks(folder: Path) -> None:
    one, two = (
        [json.loads(line)["loss"] for line in (folder / "whole" / name / "whole" / LOG).read_text().splitlines()]
        for name in ("one", "ranks")
    )
    assert two == pytest.approx(one, rel=1e-4)


def stop_early(way: str, folder: Path, world: World) -> None:
    """The second rank is asked to stop after two updates."""
    output = folder / "asked" / way
    trainer = Trainer(task(way, folder, world), Settings(steps=STEPS), output, world=world)
    is_done = trainer.run(lambda: world.rank == 1 and trainer.step == 2)
    (output / f"{world.rank}.json").write_text(json.dumps([trainer.step, is_done]))


def have_bad_numbers(way: str, folder: Path, world: World) -> None:
    """The second rank's loss is none."""
    faulty = task(way, folder, world)
    if world.rank == 1:
        loss = faulty.loss
        faulty.loss = lambda batch: loss(batch) * math.nan  # type: ignore[method-assign]
    output = folder / "bad" / way
    output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(faulty, Settings(steps=STEPS), output, world=world)
    before = [local(weight.detach()).clone() for weight in trainer.parameters.values()]
    trainer.update()
    is_same = all(map(torch.equal, before, map(local, trainer.parameters.values())))
    trainer.checkpoint()
    (output / str(world.rank)).write_text(f"{trainer.skipped} {is_same}")


def resume_late(folder: Path, world: World) -> None:
    """Go on from a checkpoint that the first rank begins to write when the other is looking for it already."""
    first = Trainer(task("whole", folder, world), Settings(steps=STEPS), folder / "late", world=world)
    first.update()
    if world.is_main:
        time.sleep(0.5)
        first.checkpoint()
    rest = Trainer(task("whole", folder, world), Settings(steps=STEPS), folder / "late", world=world)
    rest.resume()
    (folder / f"late{world.rank}").write_text(str(rest.step))


def resume_apart(folder: Path, world: World) -> None:
    """Look for a checkpoint in folders of which the first rank's only has one."""
    own = folder / f"own{world.rank}"
    trainer = Trainer(task("whole", folder, world), Settings(steps=STEPS), own, world=world)
    if world.is_main:
        trainer.checkpoint()
    with pytest.raises(InputError) as refusal:
        trainer.resume()
    (own / "refusal").write_text(str(refusal.value))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world = place()
    with joined(world, torch.device("cpu"), 60):
        for way in WAYS:
            learn(way, folder, world)
        resume_late(folder, world)
        resume_apart(folder, world)
        for way in ("whole", "sharded"):
            stop_early(way, folder, world)
            have_bad_numbers(way, folder, world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
