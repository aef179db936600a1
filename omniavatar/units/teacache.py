"""TeaCache (Liu et al. 2024, arXiv:2411.19108): skip the blocks of steps whose time embedding has hardly moved."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from omniavatar.engine.scopes import Forward, Step, Window
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl


@dataclass(frozen=True)
class Schedule:
    """For every step: whether it is skipped, the relative change before it, and the sum after it."""

    skips: tuple[bool, ...]
    changes: tuple[float, ...]
    sums: tuple[float, ...]


class TeaCache(PipelineUnit):
    """Cache: reuse what the blocks added in an earlier step while the modulation by time changes little.

    The change between calls, mapped by the checkpoint's polynomial, is summed up; a step is computed when the sum
    reaches the threshold, and the first and last always are. It depends on the timesteps alone, so the whole schedule
    is known before the first step and is the same for all branches.
    """

    name = "teacache"

    class Settings(UnitSettings):
        threshold: float = Field(
            0.14, gt=0, le=10, description="sum of changes that forces a computed step; more is faster"
        )
        coefficients: tuple[float, ...] = Field(
            (1.0, 0.0),
            min_length=1,
            description="polynomial of the checkpoint, highest power first; default: the change itself",
        )
        clamp: bool = Field(True, description="count a negative polynomial as 0, unlike the first programs")

    settings: Settings

    @hookimpl(wrapper=True, specname="run_blocks")
    def remember(self, forward: Forward) -> Generator[None, Tensor, Tensor]:
        """Keep what the blocks added, whenever they ran."""
        before = forward.x
        result = yield
        if not self._reuses(forward):
            forward.memory["teacache.residual"] = result - before
        return result

    @hookimpl
    def run_blocks(self, forward: Forward) -> Tensor | None:
        if not self._reuses(forward):
            return None
        reused: Tensor = forward.x + forward.memory["teacache.residual"]
        return reused

    def _reuses(self, forward: Forward) -> bool:
        step, schedules = forward.step, forward.window.once("teacache.schedules", dict[Any, Schedule])
        if step.network not in schedules:
            schedules[step.network] = self.schedule(steps_with(step.network, forward.window))
        position = steps_with(step.network, forward.window).index(step)
        return bool(schedules[step.network].skips[position]) and "teacache.residual" in forward.memory

    def schedule(self, steps: Sequence[Step]) -> Schedule:
        """Which of the steps, all of one network, reuse the residual."""
        return decide(relative_changes([modulation(step) for step in steps]), self.settings)


def steps_with(network: Any, window: Window) -> list[Step]:
    """The window's steps that this network denoises."""
    return [step for step in window.steps if step.network is network]


def modulation(step: Step) -> Tensor:
    """What the network's blocks are told about the time of a step (1 6 d), float32."""
    timestep = torch.tensor([step.timestep], dtype=torch.float64, device=step.engine.device)
    _, t_mod = step.network.embed_time(timestep)
    modulated: Tensor = t_mod.float()
    return modulated


def relative_changes(modulations: Sequence[Tensor]) -> list[float]:
    """mean|E_i - E_(i-1)| / mean|E_(i-1)| for every step, 0 for the first; one transfer from the device."""
    changes = [torch.zeros((), device=modulations[0].device)]
    for before, now in pairwise(modulations):
        changes.append((now - before).abs().mean() / before.abs().mean())
    result: list[float] = torch.stack(changes).double().tolist()
    return result


def decide(changes: Sequence[float], settings: TeaCache.Settings) -> Schedule:
    """The skip schedule for these changes (Algorithm 1 of the paper, with the polynomial of its section 4.2)."""
    skips, sums, total = [], [], 0.0
    for index, change in enumerate(changes):
        if index in (0, len(changes) - 1):
            skip, total = False, 0.0
        else:
            mapped = polynomial(settings.coefficients, change)
            total += max(mapped, 0.0) if settings.clamp else mapped
            skip = total < settings.threshold
            total = total if skip else 0.0
        skips.append(skip)
        sums.append(total)
    return Schedule(tuple(skips), tuple(changes), tuple(sums))


def polynomial(coefficients: Sequence[float], x: float) -> float:
    """Horner's rule, highest power first."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value
