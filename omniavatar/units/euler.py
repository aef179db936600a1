"""The flow-matching Euler solver."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Step


class Euler(PipelineUnit):
    """Solver: Euler steps along the flow, of first order."""

    name = "euler"
    brings = ("schedule",)
    moved: ClassVar = {"steps": "schedule.steps", "shift": "schedule.shift"}

    @hookimpl
    def advance(self, step: Step) -> Tensor:
        return step.window.latents + step.velocity * (step.sigma_next - step.sigma)
