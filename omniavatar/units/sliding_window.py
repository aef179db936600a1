"""A window denoised in overlapping pieces, blended in every step (as MultiDiffusion, Bar-Tal et al. 2023, does)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Forward


class SlidingWindow(PipelineUnit):
    """Long windows for less attention: the transformer sees a few latent frames at a time, blended where they overlap.

    Positions begin anew in every piece. All pieces share one noise, so that they agree without frames being held.
    """

    name = "sliding-window"
    passes_on = ("call",)

    class Settings(UnitSettings):
        size: int = Field(21, ge=2, description="latent frames of a piece")
        stride: int = Field(14, ge=1, description="latent frames from one piece to the next; the rest overlaps")

        @model_validator(mode="after")
        def _no_gaps(self) -> SlidingWindow.Settings:
            if self.stride > self.size:
                raise ValueError(f"stride {self.stride} leaves gaps between pieces of {self.size} latent frames")
            return self

    settings: Settings

    @hookimpl
    def call(self, forward: Forward) -> Tensor | None:
        total = forward.latents.shape[2]
        spans = pieces(total, self.settings.size, self.settings.stride)
        if len(spans) == 1 or total < forward.window.latents.shape[2]:
            return None
        parts = [forward.step.forward(forward.branches, span) for span in spans]
        return blend(parts, spans, self.settings.size - self.settings.stride)


def pieces(total: int, size: int, stride: int) -> list[slice]:
    """Slices of `size` frames every `stride`, the last one shorter; none that lies inside the one before it."""
    return list(_pieces(total, size, stride))


def _pieces(total: int, size: int, stride: int) -> Iterator[slice]:
    for start in range(0, total, stride):
        yield slice(start, min(start + size, total))
        if start + size >= total:
            return


def blend(parts: Sequence[Tensor], spans: Sequence[slice], overlap: int) -> Tensor:
    """The weighted mean of parts (b c n h w) at their places: (b c t h w), t where the last span ends."""
    total = spans[-1].stop
    batch, channels, _, height, width = parts[0].shape
    mixed = parts[0].new_zeros(batch, channels, total, height, width)
    weights = parts[0].new_zeros(total)
    for part, span in zip(parts, spans, strict=True):
        weight = ramp(part.shape[2], overlap, rises=span.start > 0, falls=span.stop < total).to(part)
        mixed[:, :, span] += part * weight[:, None, None]
        weights[span] += weight
    return mixed / weights[:, None, None]


def ramp(length: int, overlap: int, *, rises: bool, falls: bool) -> Tensor:
    """Weights (length,): 1, and (i + 0.5) / overlap towards a side where the video goes on."""
    weights = torch.ones(length)
    if overlap > 0:
        slope = ((torch.arange(length) + 0.5) / overlap).clamp(max=1)
        weights = torch.minimum(weights, slope) if rises else weights
        weights = torch.minimum(weights, slope.flip(0)) if falls else weights
    return weights
