"""The UniPC solver (Zhao et al. 2023, arXiv:2302.04867) for flow matching, as Wan is published with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from omniavatar.engine.flow_match import TIMESTEPS, clean_latents
from omniavatar.engine.multistep import Estimate, corrected, predicted
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Step


class UniPC(PipelineUnit):
    """Solver: UniPC of second order, in place of euler (default+unipc); good pictures in half the steps.

    Each step predicts from the last two estimates of the clean video, and the next estimate corrects it without a
    further call. Given frames are written over before every step; their history never reaches other frames, since
    every value is extrapolated by itself. As published, the schedule begins just below pure noise.
    """

    name = "unipc"
    brings = ("schedule",)
    replaces = ("euler",)
    suggests: ClassVar = {"schedule": {"steps": 25, "sigma_max": 1 - 1 / TIMESTEPS}}
    moved: ClassVar = {"steps": "schedule.steps", "shift": "schedule.shift"}

    @hookimpl
    def advance(self, step: Step) -> Tensor:
        window, sigma = step.window, float(step.sigma)
        past: list[Estimate] = window.values.pop("unipc.past", [])
        latents = window.latents
        clean = clean_latents(latents, step.velocity, sigma)
        if past:
            latents = corrected(past, sigma, clean)
        past = [*past[-1:], Estimate(sigma, clean, latents)]
        if step.is_last:
            return clean
        window["unipc.past"] = past
        return predicted(past, step.sigma_next)
