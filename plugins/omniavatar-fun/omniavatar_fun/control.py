"""A control video: its latents beside those that are denoised."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from omniavatar_i2v.condition import behind_leading
from pydantic import Field

from omniavatar.sdk import (
    SIZE_MULTIPLE,
    Footage,
    PipelineUnit,
    UnitInputs,
    UnitSettings,
    VideoFile,
    encode_pictures,
    hookimpl,
    length_of,
    opened_footage,
    probe_video,
    size_near,
    torch,
)
from omniavatar_fun.shared import OTHER_CHANNELS, picture_channels, tell_channels

if TYPE_CHECKING:
    from omniavatar.sdk import Draft, Footage, Job, Length, Outline, Window


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
            ge=SIZE_MULTIPLE**2,
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
    def plan_size(self, video: Outline) -> tuple[int, int] | None:
        """By the shape of the control video; first, since other units choose a size in any case."""
        source = video.inputs(self).control_video
        if source is None:
            return None
        info = probe_video(source)
        return size_near(info.height, info.width, self.settings.pixels, video.multiple)

    @hookimpl
    def plan_length(self, video: Outline) -> Length | None:
        return length_of(video.fps, video.inputs(self).control_video, is_limit=False)

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        tell_channels(draft, is_controlled=True, grey=self.settings.unknown == "grey")

    @hookimpl
    def begin_job(self, job: Job) -> None:
        source = job.inputs(self).control_video
        job["fun-control.footage"] = None if source is None else opened_footage(source, job)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        footage: Footage | None = window["fun-control.footage"]
        control = torch.zeros_like(window.video_latents)
        if footage is not None:
            pictures = footage.read(window.span.start, window.span.stop, hold=True, device=window.engine.device)
            control = encode_pictures(window.engine, pictures * 2 - 1, tiled=self.settings.tiled)
        known = picture_channels(window, control.shape[1], grey=self.settings.unknown == "grey")
        window["condition"] = behind_leading(torch.cat([control, known], dim=1), window.job.leading)
