"""What training says when memory runs out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from omniavatar.builtin import omni_units
from omniavatar.engine.out_of_memory import Shortage
from omniavatar.testing.tiny import TinyModels
from omniavatar.training.samples import LiveSamples
from omniavatar.training.trainer import STATE, Settings, Trainer
from omniavatar.units import GradientCheckpointing
from tests.training.scenes import diffusion

SMALLER = "a smaller samples.max_tokens, samples.frames or batch"
SPREAD = "several GPUs, units with +fsdp"


class Grows(torch.autograd.Function):
    """Passes a number on; there is no memory for its gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")


class Task:
    """One weight, which gets along without more memory for `steps` steps."""

    def __init__(self, steps: int) -> None:
        self.weight = nn.Parameter(torch.ones(()))
        self.left = steps

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight}

    def batch(self, draw: torch.Generator) -> dict[str, Tensor]:
        return {}

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        self.left -= 1
        loss: Tensor = self.weight**2 if self.left >= 0 else Grows.apply(self.weight)
        return loss

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None: ...


def test_the_step_is_named_and_what_is_done_is_kept(tmp_path: Path) -> None:
    trainer = Trainer(Task(2), Settings(steps=5), tmp_path)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.run()
    shortage = Shortage.of(caught.value)
    assert shortage is not None
    line = shortage.explain({GradientCheckpointing.name: GradientCheckpointing})
    assert line.startswith("out of memory while training, step 3, on the way back: 2.50 GiB more asked for")
    assert line.endswith(f"; try units with +gradient-checkpointing, {SMALLER} or {SPREAD}")
    assert (tmp_path / STATE).exists()


def test_a_network_that_is_too_large_asks_for_more_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And for no option of `omni run`."""

    def load(*_: object, **__: object) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    run = diffusion(tmp_path)
    samples = LiveSamples(run.preparation(), run.source(tmp_path), run.config.samples)
    monkeypatch.setattr(TinyModels, "load", load)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run.task(samples)
    shortage = Shortage.of(caught.value)
    assert shortage is not None
    line = shortage.explain({unit.name: unit for unit in omni_units()})
    assert line.startswith("out of memory while loading the network '")
    assert line.endswith(f"; try {SPREAD} or a smaller model")
