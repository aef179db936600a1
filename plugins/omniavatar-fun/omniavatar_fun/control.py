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
    multiple_of,
    probe_video,
    settle_size,
    size_near,
    torch,
)
from omniavatar_fun.shared import OTHER_CHANNELS, picture_channels, tell_channels

if TYPE_CHECKING:
    from omniavatar.sdk import Draft, Job, Window


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
    def check_request(self, draft: Draft) -> None:
        source = draft.inputs(self).control_video
        if source is not None:
            info = probe_video(source)
            settle_size(draft, lambda: size_near(info.height, info.width, self.settings.pixels, multiple_of(draft)))
            draft.has_length |= not info.is_still

    @hookimpl(specname="check_request")
    def check_channels(self, draft: Draft) -> None:
        tell_channels(draft, is_controlled=True, grey=self.settings.unknown == "grey")

    @hookimpl(tryfirst=True)
    def begin_job(self, job: Job) -> None:
        """First, since other units choose a size where there is none."""
        source = job.inputs(self).control_video
        job["fun-control.footage"] = None
        if source is not None:
            info = probe_video(source)
            settle_size(job, lambda: size_near(info.height, info.width, self.settings.pixels, multiple_of(job)))
            footage = Footage(source, fps=job.fps, size=job.size, info=info)
            job["fun-control.footage"] = job.resources.enter_context(footage)

    @hookimpl(trylast=True, specname="begin_job")
    def set_length(self, job: Job) -> None:
        """Last, since a sound sets the length before all others."""
        footage: Footage | None = job["fun-control.footage"]
        if footage is not None and job.frames is None:
            job.frames = footage.length

    @hookimpl
    def begin_window(self, window: Window) -> None:
        footage: Footage | None = window["fun-control.footage"]
        control = torch.zeros_like(window.video_latents)
        if footage is not None:
            pictures = footage.read(window.span.start, window.span.stop, hold=True, device=window.engine.device)
            control = encode_pictures(window.engine, pictures * 2 - 1, tiled=self.settings.tiled)
        known = picture_channels(window, control.shape[1], grey=self.settings.unknown == "grey")
        window["condition"] = behind_leading(torch.cat([control, known], dim=1), window.job.leading)
