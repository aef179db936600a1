"""Guidance parallelism: the branches of a step on different ranks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.engine.ranks import SpreadsWork
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.distributed.groups import Group
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Branch, Step

log = logging.getLogger(__name__)
REPEATS = "guidance makes %d calls a step for %d groups of ranks; some repeat the work of others"


class GuidanceParallel(PipelineUnit, SpreadsWork):
    """Several GPUs for each step: every rank, or group of ranks, computes some of the guidance branches.

    Only the velocities travel, so this is the cheapest way to use two or three GPUs.
    """

    name = "guidance-parallel"
    exact = True
    roles = ("dit",)
    passes_on = ("predict",)

    class Settings(UnitSettings):
        degree: int = Field(2, ge=2, le=3, description="groups of ranks; more than there are branches would idle")

    settings: Settings

    def degrees(self, engine: Engine, ranks: int) -> dict[str, int]:
        degree = self.settings.degree
        if ranks % degree:
            valid = [f"degree={fitting}" for fitting in (2, 3) if ranks % fitting == 0]
            raise PlanError(
                f"guidance-parallel(degree={degree}) does not divide {ranks} ranks; "
                f"valid: {'; '.join(valid) or 'none, so leave it out or take a multiple of 2 or 3 ranks'}"
            )
        return {"guidance": degree}

    @hookimpl(tryfirst=True)
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor] | None:
        group = step.engine.groups.guidance
        if len(branches) < group.size:
            step.window.job.once("guidance-parallel.warned", lambda: log.warning(REPEATS, len(branches), group.size))
        if group.size == 1 or len(branches) == 1:
            return None
        velocities = {branch: step.predict([branch])[0] for branch in share(branches, group)}
        empty = torch.empty_like(step.window.latents)
        return [
            group.broadcast(velocities.get(branch, empty.clone()).contiguous(), index % group.size)
            for index, branch in enumerate(branches)
        ]


def share(branches: Sequence[Branch], group: Group) -> list[Branch]:
    """The branches of this rank, as many as on every other: what is missing repeats a branch of another rank.

    Nobody waits longer for that, and collectives inside the calls, such as gathering sharded weights, always meet.
    """
    rounds = -(-len(branches) // group.size)
    return [branches[(turn * group.size + group.rank) % len(branches)] for turn in range(rounds)]
