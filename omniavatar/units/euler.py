"""The flow-matching Euler sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.engine.flow_match import shifted_sigmas, steps_along
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Step, Window


class Euler(PipelineUnit):
    """Sampler: Euler steps along the flow, on the shifted schedule. More steps, better pictures, more time."""

    name = "euler"

    class Settings(UnitSettings):
        steps: int = Field(50, ge=1, le=1000, description="denoising steps")
        shift: float = Field(5.0, gt=0, le=100, description="how much of the schedule is spent at high noise")

    settings: Settings

    @hookimpl
    def plan_steps(self, window: Window) -> Sequence[Step]:
        return steps_along(window, [*shifted_sigmas(self.settings.steps, self.settings.shift).tolist(), 0.0])

    @hookimpl
    def advance(self, step: Step) -> Tensor:
        return step.window.latents + step.velocity * (step.sigma_next - step.sigma)
