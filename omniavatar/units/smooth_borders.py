"""Smooth borders: no jump where one window ends and the next begins."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from omniavatar.engine.scopes import Window
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl


class SmoothBorders(PipelineUnit):
    """What a window shows of the last frame before it differs a little from that frame; the difference is faded out.

    The frames that a window takes over pass through the VAE once more, which changes colours and edges. What that has
    changed is put back in the first new frame and a little less in each that follows. The next window continues from
    the frames as they were.
    """

    name = "smooth-borders"
    needs = ("frames",)
    uses = ("output_frames",)
    provides = ("output_frames",)

    class Settings(UnitSettings):
        fade: int = Field(4, ge=1, le=100, description="frames until the difference is gone")

    settings: Settings

    @hookimpl
    def end_window(self, window: Window) -> None:
        frames: Tensor = window["output_frames" if "output_frames" in window else "frames"]
        given, before = window.span.given, window.previous
        if before is not None and given:
            difference = before["output_frames"][:, :, -1:] - frames[:, :, given - 1 : given]
            count = min(self.settings.fade, frames.shape[2] - given)
            part = 1 - torch.arange(1, count + 1, device=frames.device) / (self.settings.fade + 1)
            frames = frames.clone()
            frames[:, :, given : given + count] += difference * part.view(-1, 1, 1)
            frames = frames.clamp(0, 1)
        window["output_frames"] = frames
