"""A control video: its latents beside those that are denoised."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import ClassVar, Literal

import torch
from einops import rearrange
from omniavatar_i2v.condition import behind_leading
from pydantic import Field
from torch import Tensor

from omniavatar.engine.scopes import Job, Window
from omniavatar.engine.unit import PipelineUnit, UnitInputs, UnitSettings, VideoFile
from omniavatar.hookspecs import hookimpl
from omniavatar.media.video import probe_video, read_video
from omniavatar.units.reference_image import MULTIPLE
from omniavatar_fun.shared import OTHER_CHANNELS, encode, picture_channels


class FunControl(PipelineUnit):
    """A control video (pose, depth, edges, ...) that the video follows, for Fun Control transformers.

    It stands beside image-to-video, whose picture may be the first frame. Frame n of the control video is frame n of
    the video; behind its end its last picture stays. Without --size the shape is that of the control video, without
    --seconds and a sound the length too. Guidance keeps the control in all branches.
    """

    name = "fun-control"
    needs = ("condition",)
    provides = ("condition",)
    conflicts: ClassVar = {"reference-image": OTHER_CHANNELS, "animate-image": OTHER_CHANNELS}
    roles = ("vae", "dit")

    class Settings(UnitSettings):
        pixels: int = Field(
            480 * 832,
            ge=MULTIPLE**2,
            description="about how many pixels a frame has, if the control video sets the size",
        )
        unknown: Literal["zeros", "grey"] = Field(
            "zeros",
            description="what a model without mask is told of frames that no picture shows; 'grey' as DiffSynth",
        )
        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

    class Inputs(UnitInputs):
        control_video: VideoFile | None = Field(None, description="what the video follows")

    settings: Settings

    @hookimpl(tryfirst=True)
    def begin_job(self, job: Job) -> None:
        """First, since other units choose a size where there is none."""
        path = job.inputs(self).control_video
        if path is not None and (job.height is None or job.width is None):
            info = probe_video(path)
            job.height, job.width = size_near(info.height, info.width, self.settings.pixels)

    @hookimpl(trylast=True, specname="begin_job")
    def set_length(self, job: Job) -> None:
        """Last, since a sound sets the length before all others."""
        path = job.inputs(self).control_video
        if path is not None and job.frames is None:
            job.frames = video_length(path, job.fps)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        path = window.job.inputs(self).control_video
        control = torch.zeros_like(window.video_latents)
        if path is not None:
            control = encode(window.engine, control_frames(path, window), tiled=self.settings.tiled)
        known = picture_channels(window, control.shape[1], grey=self.settings.unknown == "grey")
        window["condition"] = behind_leading(torch.cat([control, known], dim=1), window.job.leading)


def control_frames(path: Path, window: Window) -> Tensor:
    """The frames of a window (1 3 f H W) in [-1, 1]; behind the end of the video its last picture stays."""
    span, job = window.span, window.job
    pictures = read_video(path, fps=job.fps, size=job.size, start=span.start, max_frames=span.frames)
    frames = rearrange(torch.from_numpy(pictures.copy()), "t h w c -> 1 c t h w").float() / 127.5 - 1
    if frames.shape[2] or window.previous is None:
        window["fun-control.last"] = frames[:, :, -1:]
    else:
        window["fun-control.last"] = window.previous["fun-control.last"]
    missing = span.frames - frames.shape[2]
    return torch.cat([frames, window["fun-control.last"].expand(-1, -1, missing, -1, -1)], dim=2)


def video_length(path: Path, fps: int) -> int | None:
    """Frames that a video file has at this rate, if they can be counted."""
    info = probe_video(path)
    if info.frames is not None:
        return max(1, round(info.frames * fps / info.fps))
    return None if info.duration is None else max(1, round(info.duration * fps))


def size_near(height: int, width: int, pixels: int) -> tuple[int, int]:
    """The size of about this shape and number of pixels that VAE and patches divide."""
    scale = sqrt(pixels / (height * width)) / MULTIPLE
    return max(1, round(height * scale)) * MULTIPLE, max(1, round(width * scale)) * MULTIPLE
