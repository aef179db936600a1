"""Two experts: one transformer for the steps at high noise, another from a boundary on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import dropwhile
from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.sdk import (
    TIMESTEPS,
    CheckpointError,
    Kept,
    PipelineUnit,
    PlacesWeights,
    PlanError,
    SavesMemory,
    UnitSettings,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import nn

    from omniavatar.sdk import Draft, Engine, Plan, Step, Window

HIGH, LOW = "dit", "dit2"
SHARDED = "fsdp"
"""The unit that shards weights, so that nothing of them can wait."""


class Moe(PipelineUnit, PlacesWeights, SavesMemory):
    """Two transformers for one video, as in Wan 2.2 A14B: --model FILE for high noise, --model dit2=FILE for low noise.

    The second takes over at the first step whose time is below the boundary, in every window anew. While one works the
    other waits in page-locked host memory, or, beside offload and disk-offload, where that unit keeps it. A LoRA for
    the second is named in the same way: --model dit2=LORA.
    """

    name = "moe"
    experts = (HIGH, LOW)
    host_roles = (HIGH, LOW)
    eases = ("prepare", "denoise", "decode")

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
        if self.settings.offload and SHARDED in draft.plan:
            raise PlanError(
                f"with '{SHARDED}' every GPU holds a part of both transformers, so that none can wait in host memory; "
                f"switch that off with {self.name}(offload=false), or leave one of the units out with -{SHARDED}"
            )

    @hookimpl(wrapper=True, tryfirst=True)
    def setup(self, engine: Engine) -> Iterator[None]:
        """Before and after all other units: they may change weights, and bring networks to the device themselves."""
        check_alike(*(engine.model(role) for role in self.experts))
        yield
        from omniavatar.sdk import let_wait

        if self.settings.offload:
            let_wait(self, engine, self.experts)
            return
        for role in self.experts:
            if role not in engine.residency.visitors and SHARDED not in engine.plan:
                engine.model(role).to(engine.device)

    @hookimpl(wrapper=True)
    def plan_steps(self, window: Window) -> Generator[None, Sequence[Step], Sequence[Step]]:
        """Around the schedule, so that all other units find the right network in every step."""
        steps = yield
        boundary = self.settings.boundary * TIMESTEPS
        for step in dropwhile(lambda step: step.timestep >= boundary, steps):
            step.expert = LOW
        return steps

    def keeps(self, role: str, blocks: int, plan: Plan) -> Kept | None:
        """All of one transformer at a time, if no other unit keeps less of it."""
        if role not in self.experts or not self.settings.offload:
            return None
        return Kept(on_device=blocks, in_host=blocks, arriving=blocks)


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
