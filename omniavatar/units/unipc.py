"""The UniPC sampler (Zhao et al. 2023, arXiv:2302.04867) for flow matching, as Wan is published with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.engine.flow_match import TIMESTEPS, shifted_sigmas, steps_along
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Step, Window

FIRST_LEVEL = 1 - 1 / TIMESTEPS
"""Just below pure noise, of which nothing is left to extrapolate from."""


@dataclass(frozen=True)
class Estimate:
    """The clean latents that the network saw in the latents of a noise level, (b c t h w) both."""

    sigma: float
    clean: Tensor
    latents: Tensor


class UniPC(PipelineUnit):
    """Sampler: UniPC of second order, in place of euler (default-euler+unipc); good pictures in half the steps.

    Each step predicts from the last two estimates of the clean video, and the next estimate corrects it without a
    further call. Given frames are written over before every step; their history never reaches other frames, since
    every value is extrapolated by itself.
    """

    name = "unipc"

    class Settings(UnitSettings):
        steps: int = Field(25, ge=1, le=1000, description="denoising steps")
        shift: float = Field(5.0, gt=0, le=100, description="how much of the schedule is spent at high noise")

    settings: Settings

    @hookimpl
    def plan_steps(self, window: Window) -> Sequence[Step]:
        sigmas = shifted_sigmas(self.settings.steps, self.settings.shift, strength=FIRST_LEVEL).tolist()
        return steps_along(window, [*sigmas, 0.0])

    @hookimpl
    def advance(self, step: Step) -> Tensor:
        window, sigma = step.window, float(step.sigma)
        past: list[Estimate] = window.values.pop("unipc.past", [])
        latents = window.latents
        clean = latents - sigma * step.velocity
        if past:
            latents = corrected(past, sigma, clean)
        past = [*past[-1:], Estimate(sigma, clean, latents)]
        if step.is_last:
            return clean
        window["unipc.past"] = past
        return predicted(past, step.sigma_next)


def log_snr(sigma: float) -> float:
    """The paper's lambda, half the logarithm of signal to noise: log((1 - sigma) / sigma)."""
    return math.log1p(-sigma) - math.log(sigma)


def predicted(past: Sequence[Estimate], sigma: float) -> Tensor:
    """UniP: the latents at a lower noise level from one or two estimates, the latest last (B(h) = e^h - 1)."""
    last = past[-1]
    h = log_snr(sigma) - log_snr(last.sigma)
    growth = -math.expm1(-h)
    target = last.clean
    if len(past) == 2:
        target = target + slope(past[0], last, h) / 2
    return (sigma / last.sigma) * last.latents + (1 - sigma) * growth * target


def corrected(past: Sequence[Estimate], sigma: float, clean: Tensor) -> Tensor:
    """UniC: the latents at `sigma` once more, now that the estimate there is known."""
    last = past[-1]
    h = log_snr(sigma) - log_snr(last.sigma)
    growth = -math.expm1(-h)
    older, newer = weights(past, h)
    target = last.clean + newer * (clean - last.clean)
    if len(past) == 2:
        target = target + older * slope(past[0], last, h)
    return (sigma / last.sigma) * last.latents + (1 - sigma) * growth * target


def slope(older: Estimate, last: Estimate, h: float) -> Tensor:
    """The change of the estimate, extrapolated over a step of length h in log_snr."""
    r = (log_snr(older.sigma) - log_snr(last.sigma)) / h
    return (older.clean - last.clean) / r


def weights(past: Sequence[Estimate], h: float) -> tuple[float, float]:
    """How the corrector weighs the older slope and the newest change: the paper's linear equations."""
    if len(past) == 1:
        return 0.0, 0.5
    r = (log_snr(past[0].sigma) - log_snr(past[1].sigma)) / h
    growth = math.expm1(-h)
    first = (growth / -h - 1) / growth
    second = 2 * ((growth / -h - 1) / -h - 0.5) / growth
    # [1 1; r 1] [older newer] = [first second]
    older = (second - first) / (r - 1)
    return older, first - older
