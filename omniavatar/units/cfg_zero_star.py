"""CFG-Zero* (Fan et al. 2025, arXiv:2503.18886): guidance away from predictions of the right size."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.engine.scopes import Branch
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Step, Window

    Predictions = Sequence[Tensor]


class CfgZeroStar(PipelineUnit):
    """CFG-Zero*: rescales the unconditional prediction to fit the conditioned one, and skips the first steps.

    v = s n + scale (p - s n) with s = <p, n> / |n|^2 for each sample, which makes s n the nearest to p. If text and
    sound have scales of their own there are p, a (no sound) and n, and both a and n are scaled to be nearest to p, so
    that equal scales give the formula for two. For a share of the steps the velocity is 0, since a model that has not
    converged does more harm than good there, and no call is made.
    """

    name = "cfg-zero-star"
    passes_on = ("predict",)

    class Settings(UnitSettings):
        optimized_scale: bool = Field(True, description="rescale the unconditional predictions")
        zero_share: float = Field(0.04, ge=0, lt=1, description="share of the steps, the first ones, that are skipped")

    settings: Settings

    def zero_steps(self, steps: Sequence[Step]) -> int:
        """How many of a window's steps stand still: 2 of 50 as published."""
        return round(len(steps) * self.settings.zero_share)

    def forecast(self, window: Window) -> Iterable[str]:
        yield f"{self.zero_steps(window.steps)} of {len(window.steps)} steps stand still"

    @hookimpl(wrapper=True)
    def plan_steps(self, window: Window) -> Generator[None, Sequence[Step], Sequence[Step]]:
        """Say which steps stand still."""
        steps = yield
        for step in steps[: self.zero_steps(steps)]:
            step.regimes.add(self.name)
        return steps

    @hookimpl(tryfirst=True)
    def predict(self, step: Step, branches: Sequence[Branch]) -> Predictions | None:
        if step.index >= self.zero_steps(step.window.steps):
            return None
        return [torch.zeros_like(step.window.latents) for _ in branches]

    @hookimpl(wrapper=True, specname="predict")
    def scale(self, step: Step, branches: Sequence[Branch]) -> Generator[None, Predictions, Predictions]:
        """Branches may also come one by one, from who spreads them; only who asks for several combines them."""
        velocities = yield
        if step.index < self.zero_steps(step.window.steps):  # whoever has answered
            return [torch.zeros_like(velocity) for velocity in velocities]
        if not self.settings.optimized_scale or len(branches) == 1:
            return velocities
        best = velocities[branches.index(Branch.fullest(branches))]
        return [velocity if velocity is best else fitted(velocity, best) for velocity in velocities]


def fitted(velocity: Tensor, best: Tensor) -> Tensor:
    """The multiple of a velocity that is nearest to another one, for each sample (b c t h w)."""
    own, other = velocity.flatten(1).float(), best.flatten(1).float()
    scale = (own * other).sum(1) / (own.square().sum(1) + 1e-8)
    return velocity * scale.view(-1, 1, 1, 1, 1).to(velocity.dtype)
