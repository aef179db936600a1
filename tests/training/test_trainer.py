"""The training loop: it learns, and a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omniavatar.errors import InputError
from omniavatar.training.gradients import Batch
from omniavatar.training.trainer import LOG, STATE, Report, Settings, Trainer, generator, learning_rate


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


def test_a_loss_that_is_no_number_stops_it(tmp_path: Path) -> None:
    class Broken(Line):
        def loss(self, batch: Batch) -> Tensor:
            return super().loss(batch) * math.nan

    with pytest.raises(InputError, match="the loss is nan at step 10; lower the learning rate"):
        Trainer(Broken(), settings(), tmp_path).run()


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
