"""The training loop: it learns, and a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omniavatar.errors import InputError, OutputError
from omniavatar.training.gradients import Batch
from omniavatar.training.trainer import LOG, RESULTS, STATE, Report, Settings, Trainer, Visit, generator, learning_rate


class Line:
    """Learns y = 3 x - 1 from noisy points."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.seen: list[float] = []

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def batch(self, draw: torch.Generator) -> Batch:
        x = torch.rand(16, 1, generator=draw) * 2 - 1
        return {"x": x, "target": 3 * x - 1 + 0.1 * torch.randn(16, 1, generator=draw)}

    def loss(self, batch: Batch) -> Tensor:
        loss: Tensor = (self.network(batch["x"]) - batch["target"]).square().mean()
        self.seen.append(float(loss.detach()))
        return loss

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        save_file(dict(weights), folder / "line.safetensors")


def settings(**changes: Any) -> Settings:
    return Settings(**{"steps": 20, "learning_rate": 0.02, "ema": 0.9, "warmup": 3, "schedule": "cosine", **changes})


def result(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "line.safetensors")


def test_it_learns(tmp_path: Path) -> None:
    task = Line()
    assert Trainer(task, settings(steps=300), tmp_path).run()
    assert sum(task.seen[-20:]) < 0.02 * sum(task.seen[:20])


def test_results_on_the_way_are_those_of_shorter_runs(tmp_path: Path) -> None:
    """Of every n-th step but the last, whose result is the run's."""
    Trainer(Line(), settings(steps=6, schedule="constant", results_every=2), tmp_path / "long").run()
    assert sorted(path.name for path in (tmp_path / "long" / RESULTS).iterdir()) == ["step-000002", "step-000004"]
    for steps in (2, 4):
        Trainer(Line(), settings(steps=steps, schedule="constant"), tmp_path / str(steps)).run()
        found = result(tmp_path / "long" / RESULTS / f"step-{steps:06}")
        assert all(value.equal(found[name]) for name, value in result(tmp_path / str(steps)).items())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stopped_run_goes_on_bit_by_bit(tmp_path: Path, accumulate: int) -> None:
    whole = Line()
    Trainer(whole, settings(accumulate=accumulate), tmp_path / "whole").run()
    parts = []
    for stop in (10, None):
        task = Stopped(stop)
        with contextlib.suppress(KeyboardInterrupt):
            Trainer(task, settings(accumulate=accumulate), tmp_path / "parts").run()
        parts += task.seen
    assert parts == whole.seen
    assert all(value.equal(result(tmp_path / "parts")[name]) for name, value in result(tmp_path / "whole").items())


class Stopped(Line):
    """Is interrupted before its nth loss."""

    def __init__(self, stop: int | None) -> None:
        super().__init__()
        self.stop = stop

    def loss(self, batch: Batch) -> Tensor:
        if len(self.seen) == self.stop:
            raise KeyboardInterrupt
        return super().loss(batch)


def test_the_time_limit_leaves_something_to_go_on_from(tmp_path: Path) -> None:
    assert not Trainer(Line(), settings(steps=10**6, max_minutes=0.005), tmp_path).run()
    trainer = Trainer(Line(), settings(steps=10**6, max_minutes=0.001), tmp_path)
    trainer.resume()
    assert trainer.step > 10
    assert not (tmp_path / "line.safetensors").exists()


def test_ctrl_c_leaves_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Trainer(Stopped(7), settings(), tmp_path).run()
    trainer = Trainer(Line(), settings(), tmp_path)
    trainer.resume()
    assert trainer.step == 7


def test_the_log_has_one_line_for_every_few_steps_also_after_resuming(tmp_path: Path) -> None:
    reports: list[Report] = []
    Trainer(Line(), settings(log_every=4), tmp_path, listeners=[reports.append]).run()
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [report.step for report in reports] == [4, 8, 12, 16, 20]
    state = torch.load(tmp_path / STATE, weights_only=True)
    torch.save({**state, "step": 10}, tmp_path / STATE)
    Trainer(Line(), settings(log_every=4), tmp_path).run()
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20]


def test_the_average_is_what_is_saved(tmp_path: Path) -> None:
    task = Line()
    Trainer(task, settings(), tmp_path).run()
    saved = result(tmp_path)
    assert not any(saved[name].equal(weight) for name, weight in task.parameters().items())
    plain = Line()
    Trainer(plain, settings(ema=None), tmp_path / "plain").run()
    assert all(result(tmp_path / "plain")[name].equal(weight) for name, weight in plain.parameters().items())


def test_micro_batches_add_up_to_a_mean(tmp_path: Path) -> None:
    task = Line()
    trainer = Trainer(task, settings(accumulate=4), tmp_path)
    loss, _, _ = trainer.update()
    assert float(loss) == pytest.approx(sum(task.seen) / 4)
    assert len(set(task.seen)) == 4


def test_a_checkpoint_of_other_weights_is_refused(tmp_path: Path) -> None:
    Trainer(Line(), settings(), tmp_path).run()
    other = Line()
    other.network = nn.Sequential(nn.Linear(1, 9), nn.Tanh(), nn.Linear(9, 1))
    with pytest.raises(InputError, match="is a checkpoint of other weights; give another folder"):
        Trainer(other, settings(), tmp_path).run()


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    task = Line()
    task.parameters = dict  # type: ignore[method-assign]
    with pytest.raises(InputError, match="nothing is trained"):
        Trainer(task, settings(), tmp_path)


class Faulty(Line):
    """Has bad numbers in its nth losses."""

    def __init__(self, *bad: int) -> None:
        super().__init__()
        self.bad = bad

    def loss(self, batch: Batch) -> Tensor:
        factor = math.nan if len(self.seen) in self.bad else 1.0
        return super().loss(batch) * factor


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_updates_that_are_no_numbers_are_left_out(tmp_path: Path, clip: float | None, accumulate: int) -> None:
    """The weights, averages and optimiser states are those of the update before; the next ones go on from there."""
    bad = 5 * accumulate
    task = Faulty(bad, bad + 1)
    trainer = Trainer(task, settings(steps=20, accumulate=accumulate, clip=clip), tmp_path)
    for _ in range(5):
        trainer.update()
    before = [value.clone() for value in tensors_of(trainer)]
    trainer.update()
    assert all(map(torch.equal, tensors_of(trainer), before))
    assert (trainer.step, trainer.skipped) == (6, 1)
    for _ in range(3):
        trainer.update()
    assert not any(map(torch.equal, trainer.parameters.values(), before))
    trainer.checkpoint()
    state = torch.load(tmp_path / STATE, weights_only=True)
    assert all(value.isfinite().all() for part in ("weights", "ema") for value in state[part].values())
    assert all(value.isfinite().all() for values in state["optimizer"]["state"].values() for value in values.values())


def tensors_of(trainer: Trainer) -> list[Tensor]:
    """Everything that an update changes."""
    moments = [value for values in trainer.optimizer.state.values() for value in values.values()]
    return [*trainer.parameters.values(), *trainer.ema.values(), *moments]


def test_the_log_counts_what_is_left_out(tmp_path: Path) -> None:
    task = Faulty(2, 8, 9, 10, 11)
    trainer = Trainer(task, settings(log_every=4, steps=12), tmp_path)
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [1, 0, 4]
    assert lines[0]["loss"] == pytest.approx(sum(task.seen[index] for index in (0, 1, 3)) / 3, abs=1e-6)
    assert (lines[2]["loss"], lines[2]["gradient"]) == (None, None)
    again = Trainer(Line(), settings(log_every=4, steps=12), tmp_path)
    again.resume()
    assert again.skipped == trainer.skipped == 5


def test_many_in_a_row_that_are_no_numbers_end_it(tmp_path: Path) -> None:
    """What was kept before stays what it is."""
    task = Faulty(*range(8, 100))
    with pytest.raises(InputError, match="the gradients of 20 updates in a row are no numbers, the last at step 28"):
        Trainer(task, settings(steps=100, save_every=10), tmp_path).run()
    state = torch.load(tmp_path / STATE, weights_only=True)
    assert state["step"] == 20
    assert all(value.isfinite().all() for value in state["weights"].values())


def resumed(folder: Path, task: Line | None = None, origin: Mapping[str, Any] | None = None, **changes: Any) -> Trainer:
    """A trainer that goes on with a run of five steps."""
    if not (folder / STATE).exists():
        Trainer(Line(), settings(steps=5, ema=None), folder, origin={"alpha": 2}).run()
    trainer = Trainer(task or Line(), settings(**changes), folder, origin=origin)
    trainer.resume()
    return trainer


def test_a_checkpoint_with_another_origin_is_refused(tmp_path: Path) -> None:
    assert resumed(tmp_path, origin={"alpha": 2}).step == 5
    with pytest.raises(InputError, match="is a checkpoint with another alpha: 2, and now it is 64; give another"):
        resumed(tmp_path, origin={"alpha": 64})


def test_new_settings_of_the_optimizer_count(tmp_path: Path) -> None:
    groups = resumed(tmp_path, weight_decay=0.5, betas=(0.5, 0.6)).optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert {tuple(group["betas"]) for group in groups} == {(0.5, 0.6)}


def test_an_average_that_is_asked_for_later_begins_with_the_weights_of_then(tmp_path: Path) -> None:
    trainer = resumed(tmp_path, ema=0.9)
    assert all(mean.equal(trainer.parameters[name]) for name, mean in trainer.ema.items())
    trainer.update()
    assert not any(mean.equal(trainer.parameters[name]) for name, mean in trainer.ema.items())


def test_fewer_steps_than_are_done_write_the_result(tmp_path: Path) -> None:
    resumed(tmp_path)
    (tmp_path / "line.safetensors").unlink()
    assert Trainer(Line(), settings(steps=3, ema=None), tmp_path).run()
    weights = torch.load(tmp_path / STATE, weights_only=True)["weights"]
    assert all(value.equal(weights[name]) for name, value in result(tmp_path).items())


def test_a_torn_line_of_the_log_is_forgotten(tmp_path: Path) -> None:
    Trainer(Line(), settings(steps=4, log_every=2), tmp_path).run()
    with (tmp_path / LOG).open("a") as log:
        log.write('{"step": 6, "lo')
    Trainer(Line(), settings(steps=8, log_every=2), tmp_path).run()
    assert [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()] == [2, 4, 6, 8]


@pytest.mark.parametrize("damage", ["torn", "other", "empty"])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, damage: str) -> None:
    resumed(tmp_path)
    path = tmp_path / STATE
    match damage:
        case "torn":
            path.write_bytes(path.read_bytes()[:-500])
        case "other":
            torch.save({"step": 3}, path)
        case "empty":
            path.write_bytes(b"")
    with pytest.raises(InputError, match=r"state.pt is damaged \(.+\); put a copy in its place, or remove it to begin"):
        resumed(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to write to")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """And the checkpoint before stays."""
    resumed(tmp_path)
    before = (tmp_path / STATE).read_bytes()
    partial = tmp_path / f"{STATE}.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot write .*state.pt: .*; 5 steps are kept$"):
        Trainer(Line(), settings(), tmp_path).run()
    assert (tmp_path / STATE).read_bytes() == before
    assert not partial.is_symlink()


def test_a_stop_that_is_asked_for_comes_before_visits(tmp_path: Path) -> None:
    task, visited = Line(), list[int]()
    visit = Visit(1, lambda trainer: visited.append(trainer.step))
    assert not Trainer(task, settings(), tmp_path, visits=[visit]).run(lambda: len(task.seen) == 3)
    assert visited == [1, 2]
    assert torch.load(tmp_path / STATE, weights_only=True)["step"] == 3


@pytest.mark.parametrize("betas", [(2, 3), (0.9, 1.0), (-0.1, 0.9)])
def test_averages_that_cannot_be_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="betas"):
        settings(betas=betas)


def test_the_course_of_the_learning_rate() -> None:
    rates = [learning_rate(step, settings(steps=23, final_rate=0.1)) / 0.02 for step in range(24)]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates[13] == pytest.approx(0.55)
    assert rates[23] == pytest.approx(0.1)
    assert learning_rate(19, settings(schedule="constant")) == 0.02


def test_draws_depend_on_every_number_of_their_key() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    draws = [float(torch.rand((), generator=generator(*key))) for key in keys]
    assert len(set(draws)) == len(keys)
    assert float(torch.rand((), generator=generator(0, 0, 0, 0))) == draws[0]


def test_the_time_limit_counts_from_the_beginning_and_ends_before_visits(tmp_path: Path) -> None:
    visited = list[int]()
    visit = Visit(1, lambda trainer: visited.append(trainer.step))
    trainer = Trainer(Slow(), settings(max_minutes=0.01), tmp_path, visits=[visit])
    assert not trainer.run(began=time.monotonic() - 0.5)
    assert (trainer.step, visited) == (1, [])


class Slow(Line):
    """An update takes 0.2 s."""

    def loss(self, batch: Batch) -> Tensor:
        time.sleep(0.2)
        return super().loss(batch)
