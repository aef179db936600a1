"""The solver of latent consistency models (Luo et al. 2023, arXiv:2310.04378) for flow matching."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from omniavatar.engine.flow_match import add_noise, clean_latents
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Step


class Lcm(PipelineUnit):
    """Solver: LCM, for models distilled to a few steps (default-euler+lcm); fresh noise after every step.

    Each step takes the clean video that the network sees and adds new noise of the next level to it, seeded by the
    video's seed, the window and the step; the last one gives the clean video. A model that is not distilled gets
    blurred pictures from it. Distilled ones want guidance 1, and often levels of their own:
    schedule(timesteps=[1000, 750, 500, 250], warp=true).
    """

    name = "lcm"
    brings = ("schedule",)
    replaces = ("euler",)
    suggests: ClassVar = {"schedule": {"steps": 4}}

    @hookimpl
    def advance(self, step: Step) -> Tensor:
        clean = clean_latents(step.window.latents, step.velocity, step.sigma)
        return clean if step.is_last else add_noise(clean, step.noise(self.name), step.sigma_next)
