"""What training minimises: the error of the predicted velocity at a random noise level, through the engine's hooks.

    objective = FlowMatching()
    levels = objective.levels(objective.draw(len(clean), generator))
    loss = objective.loss(window, clean, noise, levels, window.branch("positive"))

The window is one that `begin_window` has prepared, as for making a video; so every unit takes part as it does there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from omniavatar.engine.flow_match import TIMESTEPS, add_noise, shifted_sigmas, training_weights, velocity_target
from omniavatar.engine.scopes import Branch, Window


@dataclass(frozen=True)
class Levels:
    """For every sample of a batch its noise level and the weight of its error, (b) float64 each."""

    sigma: Tensor
    weight: Tensor


@dataclass(frozen=True)
class FlowMatching:
    """Flow matching on a schedule of `steps` noise levels, the weights of which favour the middle.

    first, last: the part of the schedule that levels are drawn from, as fractions; an expert for high noise has
    [0, 0.417), say, the one for low noise the rest.
    """

    steps: int = TIMESTEPS
    shift: float = 5.0
    first: float = 0.0
    last: float = 1.0

    @cached_property
    def sigmas(self) -> Tensor:
        """The noise levels, descending (steps)."""
        return shifted_sigmas(self.steps, self.shift)

    @cached_property
    def weights(self) -> Tensor:
        """Their weights in the loss (steps)."""
        return training_weights(self.sigmas)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random noise levels (count), as indices."""
        low, high = int(self.first * self.steps), int(self.last * self.steps)
        return torch.randint(low, high, (count,), generator=generator)

    def levels(self, indices: Tensor) -> Levels:
        """The noise levels of these indices (b)."""
        return Levels(self.sigmas[indices], self.weights[indices])

    def loss(self, window: Window, clean: Tensor, noise: Tensor, levels: Levels, branch: Branch) -> Tensor:
        """The weighted mean squared error, float32, of the velocity for clean latents (b c t h w) with noise.

        Frames that are given stay as they are in the input and are left out of the error.
        """
        sigma = levels.sigma.view(-1, 1, 1, 1, 1)
        window.latents = add_noise(clean, noise, sigma.to(clean.dtype))
        step = window.loop.open_step(window, levels.sigma * TIMESTEPS, levels.sigma)
        (velocity,) = step.predict([branch])
        given: Tensor | None = window.get("given_latents")
        start = window.job.leading + (0 if given is None else given.shape[2])
        target = velocity_target(clean, noise)
        error = (velocity[:, :, start:].float() - target[:, :, start:].float()).square().flatten(1).mean(dim=1)
        return (error * levels.weight.to(error.dtype)).mean()


def distillation_loss(window: Window, target: Tensor) -> Tensor:
    """The mean squared error of what all steps of a window make of its noise, against the latents (b c t h w) wanted.

    Gradients pass through every step, so this suits plans of few steps without guidance.
    """
    for _ in window.loop.denoise(window):
        pass
    return functional.mse_loss(window.latents.float(), target.float())
