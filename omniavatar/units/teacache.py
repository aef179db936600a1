"""TeaCache (Liu et al. 2024, arXiv:2411.19108): skip the blocks of steps whose time embedding has hardly moved."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from omniavatar.engine.rehearsing import ReadsDecisiveWeights
from omniavatar.engine.step_cache import OTHER_CACHE, Schedule, StepCache
from omniavatar.engine.unit import UnitSettings
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Step

TIME_WEIGHTS = ("time_embedding.*", "time_projection.*")


@dataclass(frozen=True)
class TeaSchedule(Schedule):
    """And for every step the relative change before it, and the sum after it."""

    changes: tuple[float, ...]
    sums: tuple[float, ...]


class TeaCache(StepCache, ReadsDecisiveWeights):
    """Cache: reuse what the blocks added in an earlier step while the modulation by time changes little.

    The change between calls, mapped by the checkpoint's polynomial, is summed up; a step is computed when the sum
    reaches the threshold. The first and the last always are, and those where another unit begins or stops to act. So it
    depends on the timesteps and the plan alone, the whole schedule is known before the first step and is the same for
    all branches; `omni units plan` shows it. `omni calibrate teacache` fits the polynomial of another checkpoint.
    """

    name = "teacache"
    decisive: ClassVar = {"dit": TIME_WEIGHTS}
    conflicts: ClassVar = {**StepCache.conflicts, "magcache": OTHER_CACHE}
    roles = ("dit",)

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

    def schedule(self, steps: Sequence[Step], count: int, computed: Container[int]) -> TeaSchedule:
        return decide(relative_changes(modulations(steps)), self.settings, computed)


def modulations(steps: Sequence[Step]) -> Tensor:
    """What the blocks of the network that these steps share are told about their times (n 6 d), float32."""
    network = steps[0].network
    weights = getattr(network, "time_embedding", network).parameters()
    device = next((weight.device for weight in weights), steps[0].engine.device)  # another one may wait on the host
    timesteps = torch.tensor([step.timestep for step in steps], dtype=torch.float64, device=device)
    modulated: Tensor = network.embed_time(timesteps)[1].float()
    return modulated


def relative_changes(modulations: Iterable[Tensor]) -> list[float]:
    """mean|E_i - E_(i-1)| / mean|E_(i-1)| for every step, 0 for the first; one transfer from the device."""
    changes = [(now - before).abs().mean() / before.abs().mean() for before, now in pairwise(modulations)]
    return [0.0, *(torch.stack(changes).double().tolist() if changes else ())]


def decide(changes: Sequence[float], settings: TeaCache.Settings, computed: Container[int] = (0,)) -> TeaSchedule:
    """The skip schedule for these changes (Algorithm 1 of the paper, with the polynomial of its section 4.2).

    computed: places that are not skipped in any case, as the last one.
    """
    skips, sums, total = [], [], 0.0
    for index, change in enumerate(changes):
        if index in computed or index == len(changes) - 1:
            skip, total = False, 0.0
        else:
            mapped = polynomial(settings.coefficients, change)
            total += max(mapped, 0.0) if settings.clamp else mapped
            skip = total < settings.threshold
            total = total if skip else 0.0
        skips.append(skip)
        sums.append(total)
    return TeaSchedule(tuple(skips), tuple(changes), tuple(sums))


def polynomial(coefficients: Sequence[float], x: float) -> float:
    """Horner's rule, highest power first."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value
