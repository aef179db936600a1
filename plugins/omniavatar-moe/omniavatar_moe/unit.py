"""Two experts: one transformer for the steps at high noise, another from a boundary on."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from itertools import dropwhile
from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.engine.flow_match import TIMESTEPS
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.errors import CheckpointError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import nn

    from omniavatar.engine.draft import Draft
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Job, Step, Window

HIGH, LOW = "dit", "dit2"


class Moe(PipelineUnit):
    """Two transformers for one video, as in Wan 2.2 A14B: --model FILE for high noise, --model dit2=FILE for low noise.

    The second takes over at the first step whose time is below the boundary, in every window anew. While one works the
    other waits in host memory. A LoRA for the second is named in the same way: --model dit2=LORA.
    """

    name = "moe"
    roles = (HIGH, LOW)
    host_roles = (LOW,)

    class Settings(UnitSettings):
        boundary: float = Field(
            0.875, ge=0, le=1, description="noise level below which the second transformer works; 0.9 for Wan 2.2 I2V"
        )
        offload: bool = Field(
            True, description="keep the one that does not work in host memory; off where both fit the device"
        )

    settings: Settings

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        placed = [unit.name for unit in draft.plan.units if unit is not self and unit.hosts(HIGH)]
        if self.settings.offload and placed:
            raise PlanError(
                f"units 'moe' and '{placed[0]}' both move the transformers between host memory and device; "
                f"switch one off with moe(offload=false) or -{placed[0]}"
            )

    @hookimpl(tryfirst=True)
    def setup(self, engine: Engine) -> None:
        check_alike(*(engine.model(role) for role in self.roles))

    @hookimpl(tryfirst=True)
    def begin_job(self, job: Job) -> None:
        self._bring(job.engine, job.engine.model(HIGH))

    @hookimpl(wrapper=True)
    def plan_steps(self, window: Window) -> Generator[None, Sequence[Step], Sequence[Step]]:
        """Around the sampler, so that all other units find the right network in every step."""
        steps = yield
        boundary = self.settings.boundary * TIMESTEPS
        for step in dropwhile(lambda step: step.timestep >= boundary, steps):
            step.network = window.engine.model(LOW)
        return steps

    @hookimpl(tryfirst=True)
    def begin_window(self, window: Window) -> None:
        """First, so that other units find the first step's network on the device."""
        self._bring(window.engine, window.steps[0].network)

    @hookimpl(tryfirst=True)
    def before_step(self, step: Step) -> None:
        self._bring(step.engine, step.network)

    def _bring(self, engine: Engine, network: nn.Module) -> None:
        """Have this one of the networks on the device."""
        waiting = [engine.model(role) for role in self.roles] if self.settings.offload else ()
        place(waiting, network, engine.device)


def check_alike(high: nn.Module, low: nn.Module) -> None:
    """Raise CheckpointError if two transformers differ in the names or shapes of their weights.

    What other units make for one of them would not fit the other, which may show after half of the steps or never.
    """
    shapes = [{name: tuple(weight.shape) for name, weight in network.named_parameters()} for network in (high, low)]
    for name in shapes[0] | shapes[1]:
        first, second = (shape.get(name, "missing") for shape in shapes)
        if first != second:
            raise CheckpointError(
                f"the transformers for high and low noise differ: '{name}' is {first} in '{HIGH}' and {second} in "
                f"'{LOW}'; give two of one model"
            )


def place(waiting: Iterable[nn.Module], working: nn.Module, device: torch.device) -> None:
    """Put one network on the device, after the others have left it."""
    for network in waiting:
        if network is not working:
            move(network, torch.device("cpu"))
    move(working, device)


def move(network: nn.Module, device: torch.device) -> None:
    """Move a network, unless it is there: sharded weights refuse even that."""
    if any(parameter.device.type != device.type for parameter in network.parameters()):
        network.to(device)
