"""Guidance of two experts, each with a scale of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from omniavatar.sdk import Guidance, PipelineUnit, PlanError, UnitSettings, hookimpl
from omniavatar_moe.unit import LOW, Moe

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Draft, Step


class MoeGuidance(PipelineUnit):
    """Guidance with a scale for each of two transformers, in place of guidance.

    The defaults are those of Wan 2.2 T2V A14B.
    """

    name = "moe-guidance"

    class Settings(UnitSettings):
        scale: float = Field(
            4.0, ge=0, le=100, description="strength of the conditions at high noise; 1 switches guidance off"
        )
        low_scale: float = Field(
            3.0, ge=0, le=100, description="strength of the conditions at low noise; 1 switches guidance off"
        )
        audio_scale: float | None = Field(None, ge=0, le=100, description="strength of the sound alone; default: both")

    settings: Settings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        audio_scale = self.settings.audio_scale
        self.high = Guidance(scale=self.settings.scale, audio_scale=audio_scale)
        self.low = Guidance(scale=self.settings.low_scale, audio_scale=audio_scale)

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        if Moe.name not in draft.plan:
            raise PlanError(
                f"unit '{self.name}' has a scale for each of two transformers and only '{Moe.name}' changes between "
                f"them; add it, or take guidance instead"
            )

    @hookimpl
    def guide(self, step: Step) -> Tensor:
        rule = self.low if step.expert == LOW else self.high
        return rule.guide(step)
