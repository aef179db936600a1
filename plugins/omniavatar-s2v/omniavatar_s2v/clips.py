"""Clips: what makes one long video of many windows, each continuing the last frames of the one before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from omniavatar.sdk import (
    Footage,
    IdleInSteps,
    PipelineUnit,
    PlanError,
    Span,
    UnitInputs,
    UnitSettings,
    VideoFile,
    encode_pictures,
    functional,
    hookimpl,
    overwrite_frames,
)
from omniavatar_s2v.shared import FOR_S2V, MOTION_FRAMES

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Draft, Job, Step, Window

TEMPORAL_FACTOR = 4
"""Frames of a latent of Wan's VAE, which S2V is made for."""
LEAD = TEMPORAL_FACTOR - 1
"""Frames that a video begins with and does not show: its first latent frame, the one behind the picture, holds them."""
GREY = 0.5


class S2VClips(PipelineUnit, IdleInSteps):
    """Long video: clips that follow each other, each told what the 73 frames before it looked like.

    The frames before a clip, or in front of the first one the picture, are in its window as given frames, so that the
    clip is decoded as their continuation; they are not shown again. An earlier video can be continued.
    """

    name = "s2v-clips"
    needs = ("image_latent", "previous.frames")
    provides = ("given_latents", "motion_latents")
    conflicts: ClassVar = {"transformer": FOR_S2V, "fixed-frames": "S2V continues its videos by s2v-clips"}
    roles = ("vae",)
    idle_in_steps = ("vae",)

    class Settings(UnitSettings):
        clip_frames: int = Field(
            80, ge=4, le=120, multiple_of=4, description="frames of a clip, 4n; the first shows 3 less"
        )
        full_clips: bool = Field(
            False, description="denoise the last clip in full length, as the first S2V program does"
        )
        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

    class Inputs(UnitInputs):
        motion: VideoFile | None = Field(None, description="a video, maybe of an earlier run, whose end is continued")

    settings: Settings

    @hookimpl(wrapper=True)
    def check_request(self, draft: Draft) -> Iterator[None]:
        """When all have said what they put in front of the video."""
        yield
        refuse_leading(draft.leading)

    @hookimpl
    def plan_windows(self, job: Job) -> list[Span]:
        refuse_leading(job.leading)
        first = first_span(continues=job.inputs(self).motion is not None)
        return plan_clips(job.length, self.settings.clip_frames, first, full=self.settings.full_clips)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        frames = self.frames_before(window)
        window["motion_latents"] = (
            None if frames is None else encode_pictures(window.engine, frames * 2 - 1, tiled=self.settings.tiled)
        )
        window["given_latents"] = window["image_latent"] if frames is None else window["motion_latents"]

    @hookimpl
    def before_step(self, step: Step) -> None:
        overwrite_frames(step.window)

    @hookimpl
    def after_step(self, step: Step) -> None:
        if step.is_last:
            overwrite_frames(step.window)

    def frames_before(self, window: Window) -> Tensor | None:
        """The last 73 frames before a window (1 3 73 h w) in [0, 1], grey where there are fewer; None without any."""
        if window.previous is not None:
            shown, span = window.previous["frames"], window.previous.span
            if window.previous.index == 0 and window.job.inputs(self).motion is None:
                shown = shown[:, :, -(span.stop - span.keep_start) :]  # not the picture, nor what is behind it
        elif (source := window.job.inputs(self).motion) is not None:
            with Footage(source, fps=window.job.fps, size=window.job.size) as footage:
                shown = footage.last(MOTION_FRAMES, device=window.engine.device)
        else:
            return None
        shown = shown[:, :, -MOTION_FRAMES:]
        return functional.pad(shown, (0, 0, 0, 0, MOTION_FRAMES - shown.shape[2], 0), value=GREY)


def refuse_leading(leading: int) -> None:
    """Raise PlanError if there are frames in front of the video's."""
    if leading:
        raise PlanError(
            "a unit of the plan puts frames in front of those of the video, and S2V clips have no place for them; "
            "leave out that unit, or the reference pictures that it adds"
        )


def first_span(*, continues: bool) -> Span:
    """What is given to the first clip: the past, or the picture, which stands in front of the frames not shown."""
    if continues:
        return Span(-MOTION_FRAMES, 0, MOTION_FRAMES, 0, 0)
    return Span(-LEAD - 1, -LEAD, 1, 0, 0)


def plan_clips(video_frames: int, clip_frames: int, first: Span, *, full: bool) -> list[Span]:
    """Clips for `video_frames` frames: the first continues the given frames of `first`, the others 73 frames.

    full: let the last clip keep its full length instead of stopping with the video.
    """
    spans: list[Span] = []
    position = first.stop
    while position < video_frames:
        missing = -(-(video_frames - position) // TEMPORAL_FACTOR) * TEMPORAL_FACTOR
        stop = position + (clip_frames if full else min(clip_frames, missing))
        given = MOTION_FRAMES if spans else first.given
        spans.append(Span(position - given, stop, given, max(0, position), min(stop, video_frames)))
        position = stop
    return spans
