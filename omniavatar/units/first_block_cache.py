"""First-block cache: the first block tells whether the others would add what they added before.

From ParaAttention (Cheng 2024, github.com/chengzeyi/ParaAttention), known from diffusers as FirstBlockCache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from omniavatar.engine.rehearsing import NotRehearsed
from omniavatar.engine.step_cache import OTHER_CACHE, borders, changes_of_regimes, ranges, steps_by_role
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Forward, Window


@dataclass(frozen=True)
class Past:
    """What the first block and the others added (b s d) to each sample when all blocks last ran for it.

    regimes: those of the step in which they ran.
    """

    first: Tensor
    others: Tensor
    regimes: frozenset[str]


class FirstBlockCache(PipelineUnit, NotRehearsed):
    """Cache: run the first block, and reuse what the others added if it adds about the same as when they ran.

    It needs no calibration and follows what is shown. That costs one block and one wait for the device in each call. A
    branch decides for itself: branches in one batch are spared only when all of them are, on several ranks a call is
    spared only when all ranks spare theirs, and the video is the same either way. Where another unit begins or stops to
    act, all blocks run.
    """

    name = "first-block-cache"
    conflicts: ClassVar = {"teacache": OTHER_CACHE, "magcache": OTHER_CACHE}

    class Settings(UnitSettings):
        threshold: float = Field(
            0.05, ge=0, le=10, description="relative change of what the first block adds that forces a computed call"
        )

    settings: Settings

    def forecast(self, window: Window) -> Iterable[str]:
        """Which steps are computed whatever they show, such as "dit: computed in any case: 1, 5; nag changes at 5"."""
        for role, steps in steps_by_role(window):
            computed = [steps[place].index + 1 for place in (0, *borders(steps))]
            line = f"{role}: computed in any case: {ranges(computed)}"
            yield "; ".join([line, *(f"{name} changes at {ranges(at)}" for name, at in changes_of_regimes(steps))])

    @hookimpl
    def run_blocks(self, forward: Forward) -> Tensor:
        before = forward.x
        forward.run_block(0)
        after_first = forward.x
        first = after_first - before
        regimes = frozenset(forward.step.regimes)
        past: Past | None = forward.memory.get("first-block-cache.past")
        past = past if past is not None and past.regimes == regimes else None
        reuses = torch.zeros(len(first), dtype=torch.bool) if past is None else self.reuses(forward, first, past)
        if everywhere(forward, bool(reuses.all())) and past is not None:
            return after_first + past.others
        for index in range(1, len(forward.network.blocks)):
            forward.run_block(index)
        others = forward.x - after_first
        if past is None or not reuses.any():
            forward.memory["first-block-cache.past"] = Past(first, others, regimes)
            return forward.x
        chosen = reuses.to(first.device)[:, None, None]
        past = Past(torch.where(chosen, past.first, first), torch.where(chosen, past.others, others), regimes)
        forward.memory["first-block-cache.past"] = past
        return torch.where(chosen, after_first + past.others, forward.x)

    def reuses(self, forward: Forward, first: Tensor, past: Past) -> Tensor:
        """For each sample whether the relative L1 change over the tokens of all ranks is small (b), on the host."""
        sizes = [(first - past.first).float().abs().sum(-1), past.first.float().abs().sum(-1)]
        change, size = forward.gather(torch.stack(sizes, dim=-1)).sum(1).unbind(-1)
        return (change < self.settings.threshold * size).cpu()


def everywhere(forward: Forward, spares: bool) -> bool:
    """Whether all ranks spare their calls: blocks may hold collectives of all ranks, and the others wait anyway."""
    world = forward.engine.groups.world
    if world.size == 1:
        return spares
    votes = world.gather(torch.tensor([spares], dtype=torch.float32, device=forward.x.device))
    return bool(torch.stack(votes).min())
