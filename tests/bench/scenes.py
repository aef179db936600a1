"""Combinations over networks that compute nothing, made to be measured in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from omniavatar.bench.probe import Probe
from omniavatar.bench.runner import Contender
from omniavatar.cli.progress import Display, Watcher
from omniavatar.engine.scopes import Forward
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from tests.scenes import Scene, denoising_units, fake_engine, request


class Skips(PipelineUnit):
    """Runs no blocks after the first step."""

    name = "skips"

    @hookimpl
    def run_blocks(self, forward: Forward) -> Tensor | None:
        return None if forward.step.is_first else forward.x


class Shifts(PipelineUnit):
    """Adds a constant to what the transformer says."""

    name = "shifts"

    @hookimpl(trylast=True)
    def after_block(self, forward: Forward) -> None:
        forward.x = forward.x + torch.full_like(forward.x, 0.05)


def contender(*more: PipelineUnit, seeds: Sequence[int] = (1,), frames: int = 17, **options: Any) -> Contender:
    """Windows of 9 frames that share 5, two steps, and whatever else is given."""
    probe, watcher = Probe(), Watcher(Display())
    units = [Scene(frames, (0.2, 0.1)), *denoising_units(), *more]
    engine = fake_engine(units, observers=[probe, watcher], **options)
    return Contender(engine, {seed: request(seed=seed) for seed in seeds}, watcher, probe)


def maker(*more: Callable[[], PipelineUnit], **options: Any) -> Callable[[], Contender]:
    """What makes a contender with units of its own."""
    return lambda: contender(*(unit() for unit in more), **options)
