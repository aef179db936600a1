"""What training says when memory runs out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from omniavatar.engine.out_of_memory import Shortage
from omniavatar.training.trainer import STATE, Settings, Trainer
from omniavatar.units import GradientCheckpointing


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
    assert line.endswith("; try --units with +gradient-checkpointing or smaller clips")
    assert (tmp_path / STATE).exists()
