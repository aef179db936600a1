"""Flow matching with a shifted schedule, as pure functions: noise levels, noising, target and training weights.

x_sigma = (1 - sigma) x_0 + sigma noise; the network predicts the velocity noise - x_0; timestep = 1000 sigma.
The shift k maps a uniform u to sigma = k u / (1 + (k - 1) u) (Esser et al. 2024, "Scaling Rectified Flow Transformers",
section 5.3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Step, Window

TIMESTEPS = 1000


def shifted(u: Tensor, shift: float) -> Tensor:
    """The noise levels of uniform ones."""
    return shift * u / (1 + (shift - 1) * u)


def shifted_sigmas(
    steps: int,
    shift: float,
    *,
    strength: float = 1.0,
    sigma_max: float = 1.0,
    sigma_min: float = 0.0,
    end_included: bool = False,
) -> Tensor:
    """The noise levels before each of `steps` steps, descending, float64 (steps).

    strength: 1 starts from the highest level, less starts further down. sigma_max, sigma_min: the highest and the
    lowest level before the shift. end_included: let the last level be the lowest itself instead of leaving that for
    after the last step.
    """
    start = sigma_min + (sigma_max - sigma_min) * strength
    points = steps if end_included else steps + 1
    return shifted(torch.linspace(start, sigma_min, points, dtype=torch.float64)[:steps], shift)


def twice_shifted_sigmas(steps: int, shift: float) -> Tensor:
    """The levels that diffusers' FlowMatchEulerDiscreteScheduler has by itself, down to nearly 0, float64 (steps).

    They are evenly spaced between the shifted ends of a schedule of 1000 steps, and shifted once more.
    """
    first, last = shifted(torch.tensor([1.0, 1 / TIMESTEPS], dtype=torch.float64), shift).tolist()
    return shifted(torch.linspace(first, last, steps, dtype=torch.float64), shift)


def karras_sigmas(steps: int, shift: float, rho: float = 7.0) -> Tensor:
    """Levels between the ends of `twice_shifted_sigmas`, dense at low noise (Karras et al. 2022, arXiv:2206.00364,
    equation 5), float64 (steps).
    """
    first, last = twice_shifted_sigmas(max(steps, 2), shift)[[0, -1]].pow(1 / rho).tolist()
    return torch.linspace(first, last, steps, dtype=torch.float64).pow(rho)


def exponential_sigmas(steps: int, shift: float) -> Tensor:
    """Levels between the ends of `twice_shifted_sigmas`, evenly spaced by their logarithm, float64 (steps)."""
    first, last = twice_shifted_sigmas(max(steps, 2), shift)[[0, -1]].log().tolist()
    return torch.linspace(first, last, steps, dtype=torch.float64).exp()


START_LATENTS = "start_latents"
"""The value of a window from which denoising starts, with noise of the first level: clean latents (b c t h w)."""
SPACINGS = {"diffusers": twice_shifted_sigmas, "karras": karras_sigmas, "exponential": exponential_sigmas}
"""How levels are spaced other than evenly before the shift, by name."""


def steps_along(window: Window, sigmas: Sequence[float]) -> list[Step]:
    """A step between every two of these noise levels, of which the last is usually 0."""
    from omniavatar.engine.scopes import Step

    return [
        Step(window, index, sigma * TIMESTEPS, sigma, following)
        for index, (sigma, following) in enumerate(pairwise(sigmas))
    ]


def add_noise(clean: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """The noisy latents at level `sigma`."""
    return (1 - sigma) * clean + sigma * noise


def clean_latents(noisy: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """What a predicted velocity says of the clean latents."""
    return noisy - sigma * velocity


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """What the network is trained to predict."""
    return noise - clean


def training_weights(sigmas: Tensor) -> Tensor:
    """The loss weights of the noise levels of a training schedule (steps): a bell in the middle, mean 1, minimum 0.

    A schedule of fewer steps than the usual 1000 is raised by its second weight, so that its first level counts too.
    """
    bell = torch.exp(-2 * (sigmas - 0.5) ** 2)
    weights = (bell - bell.min()) * (len(sigmas) / (bell - bell.min()).sum())
    return weights if len(sigmas) == TIMESTEPS else weights + weights[1]
