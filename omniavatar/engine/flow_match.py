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


def shifted_sigmas(
    steps: int, shift: float, *, strength: float = 1.0, sigma_min: float = 0.0, end_included: bool = False
) -> Tensor:
    """The noise levels before each of `steps` steps, descending, float64 (steps).

    strength: 1 starts from pure noise, less starts further down. end_included: let the last level be sigma_min itself
    instead of leaving it for after the last step.
    """
    start = sigma_min + (1.0 - sigma_min) * strength
    points = steps if end_included else steps + 1
    u = torch.linspace(start, sigma_min, points, dtype=torch.float64)[:steps]
    return shift * u / (1 + (shift - 1) * u)


def steps_along(window: Window, sigmas: Sequence[float]) -> list[Step]:
    """A step between every two of these noise levels."""
    from omniavatar.engine.scopes import Step

    return [
        Step(window, index, sigma * TIMESTEPS, sigma, following)
        for index, (sigma, following) in enumerate(pairwise(sigmas))
    ]


def add_noise(clean: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """The noisy latents at level `sigma`."""
    return (1 - sigma) * clean + sigma * noise


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
