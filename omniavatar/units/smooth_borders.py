"""Smooth borders: no jump where one window ends and the next begins."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from omniavatar.engine.scopes import Window
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl


class SmoothBorders(PipelineUnit):
    """What changes where a window begins, although nothing moves, is put back and faded out.

    The frames that a window takes over pass through the VAE once more, which changes colours and edges, and the first
    new frame does not quite continue them: it should differ from the last as the second does from it. Both are put
    back in the first new frame, and a little less in each that follows: all of the former, of the latter what is small;
    large differences are motion. The next window continues from the frames as they were.
    """

    name = "smooth-borders"
    needs = ("frames",)
    uses = ("output_frames",)
    provides = ("output_frames",)

    class Settings(UnitSettings):
        fade: int = Field(12, ge=1, le=100, description="frames until the difference is gone")
        still: float = Field(
            8, ge=0, le=255, description="grey levels of 255 by which nothing moves; from twice as much on it is motion"
        )

    settings: Settings

    @hookimpl
    def end_window(self, window: Window) -> None:
        frames: Tensor = window["output_frames" if "output_frames" in window else "frames"]
        given, before = window.span.given, window.previous
        if before is not None and given:
            count = min(self.settings.fade, frames.shape[2] - given)
            last, again = before["output_frames"][:, :, -1], frames[:, :, given - 1]
            first, second = frames[:, :, given], frames[:, :, given + min(1, count - 1)]
            wrong = last - again
            expected = last + second - first
            wrong = wrong + without_motion(expected - first - wrong, self.settings.still / 255)
            part = 1 - torch.arange(count, device=frames.device) / self.settings.fade
            frames = frames.clone()
            frames[:, :, given : given + count] += wrong.unsqueeze(2) * part.view(-1, 1, 1)
            frames = frames.clamp(0, 1)
        window["output_frames"] = frames


def without_motion(difference: Tensor, still: float) -> Tensor:
    """Of a difference of pictures (b c h w), what is around pixels that differ by up to `still`; none from twice on."""
    size = functional.avg_pool2d(
        difference.abs().amax(1, keepdim=True), 5, stride=1, padding=2, count_include_pad=False
    )
    return difference * (2 - size / max(still, 1e-6)).clamp(0, 1)
