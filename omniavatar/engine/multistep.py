"""Solvers that extrapolate from the estimates of earlier steps, as pure functions: the formulas of UniPC.

UniPC (Zhao et al. 2023, arXiv:2302.04867) with B(h) = e^h - 1. Its predictor of second order alone is DPM-Solver++(2M)
(Lu et al. 2022, arXiv:2211.01095).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """The clean latents that the network saw in the latents of a noise level, (b c t h w) both."""

    sigma: float
    clean: Tensor
    latents: Tensor


def log_snr(sigma: float) -> float:
    """The papers' lambda, half the logarithm of signal to noise: log((1 - sigma) / sigma); no signal is -infinity."""
    return math.log1p(-sigma) - math.log(sigma) if sigma < 1 else -math.inf


def predicted(past: Sequence[Estimate], sigma: float) -> Tensor:
    """UniP: the latents at a lower noise level from one or two estimates, the latest last."""
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
