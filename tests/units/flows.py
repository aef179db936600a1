"""What tests of solvers share: fields that a network would predict, and runs through the engine along them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from omniavatar.engine.scopes import Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.units import Schedule, Transformer
from tests.scenes import Scene, fake_engine, request

Field = Callable[[Tensor, float], Tensor]


class Flow(PipelineUnit):
    """Answers with the velocity of a field, and keeps what every step starts and ends with.

    evaluations: the noise levels at which the field was asked.
    """

    name = "flow"

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field
        self.noise = torch.empty(0)
        self.sigmas: list[float] = []
        self.evaluations: list[float] = []
        self.latents: list[Tensor] = []
        self.fresh: list[Tensor] = []

    @hookimpl
    def begin_window(self, window: Window) -> None:
        self.noise = window.latents

    @hookimpl
    def guide(self, step: Step) -> Tensor:
        self.evaluations.append(float(step.sigma))
        return self.field(step.window.latents, float(step.sigma))

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.sigmas.append(float(step.sigma))
        self.latents.append(step.window.latents)
        self.fresh.append(step.noise("lcm"))


class Held(PipelineUnit):
    """Writes noise of its own over the first frame before every step, and something else at the end."""

    name = "held"

    @hookimpl
    def before_step(self, step: Step) -> None:
        step.window.latents[:, :, 0] = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(step.index))


def run(schedule: Schedule, solver: PipelineUnit, field: Field, *more: PipelineUnit) -> Flow:
    flow = Flow(field)
    fake_engine([Scene(frames=5), flow, schedule, solver, Transformer(), *more]).generate(request())
    return flow


def curved(latents: Tensor, sigma: float) -> Tensor:
    return torch.tanh(2 * latents) * (1 + sigma) - 0.5 * torch.sin(3 * latents + sigma)


def gentle(latents: Tensor, sigma: float) -> Tensor:
    return latents - torch.tanh(latents * (1 - sigma))
