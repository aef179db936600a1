"""Classifier-free guidance with one scale for text and sound together, or one for each."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.engine.scopes import Branch
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Step, Window


class Guidance(PipelineUnit):
    """Guidance: how strongly the video follows text and sound, away from the negative prompt and silence.

    v = n + scale (a - n) + audio_scale (p - a), with p all conditions, a no sound, n neither. Only the calls that count
    are made: one at scale 1, two when one scale holds for both, three when each has its own.
    """

    name = "guidance"

    class Settings(UnitSettings):
        scale: float = Field(4.5, ge=0, le=100, description="strength of the conditions; 1 switches guidance off")
        audio_scale: float | None = Field(None, ge=0, le=100, description="strength of the audio alone; default: scale")

    settings: Settings

    @hookimpl
    def guide(self, step: Step) -> Tensor:
        weights = self.weights(step.window)
        velocities = step.predict(list(weights))
        return sum_of(weight * velocity for weight, velocity in zip(weights.values(), velocities, strict=True))

    def weights(self, window: Window) -> dict[Branch, float]:
        """The branches and their weights in the guided velocity, without those of weight 0."""
        scale = self.settings.scale
        audio_scale = scale if self.settings.audio_scale is None else self.settings.audio_scale
        weights = {
            window.branch("positive"): audio_scale,
            window.branch("no-audio", drops=["audio"]): scale - audio_scale,
            window.branch("negative", drops=[Branch.ALL]): 1 - scale,
        }
        return {branch: weight for branch, weight in weights.items() if weight != 0}


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return reduce(torch.add, terms)
