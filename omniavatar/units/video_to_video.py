"""Video to video: the start of denoising comes from given footage instead of from noise alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from omniavatar.engine.pictures import MULTIPLE, encode, multiple_of, settle_size
from omniavatar.engine.residency import IdleInSteps
from omniavatar.engine.saving import SavesMemory
from omniavatar.engine.unit import PipelineUnit, UnitInputs, UnitSettings, VideoFile
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.footage import Footage
from omniavatar.media.image import size_near
from omniavatar.media.video import VideoInfo, probe_video

if TYPE_CHECKING:
    from omniavatar.engine.draft import Draft
    from omniavatar.engine.scopes import Job, Window

log = logging.getLogger(__name__)


class VideoToVideo(PipelineUnit, IdleInSteps, SavesMemory):
    """Video to video: denoising starts from given footage with noise on it, so that its motion and colours stay.

    How much noise it gets is schedule.strength, 0.8 unless something else is said; less keeps more of the footage.
    Frames that are held fixed, such as a reference image's, stay what they are. Without a picture the footage sets the
    size of the video, without a sound its length; behind its end its last picture stays.
    """

    name = "video-to-video"
    provides = ("start_latents",)
    suggests: ClassVar = {"schedule": {"strength": 0.8}}
    roles = ("vae",)
    idle_in_steps = ("vae",)

    class Settings(UnitSettings):
        pixels: int = Field(
            480 * 832,
            ge=MULTIPLE**2,
            description="how many pixels a frame has at most, about, if the footage sets the size",
        )
        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

    class Inputs(UnitInputs):
        video: VideoFile = Field(description="footage to start from")

    settings: Settings

    def smaller(self, work: str, window: Window | None) -> Mapping[str, Any]:
        return {"tiled": True} if work == "prepare" and window is not None and not self.settings.tiled else {}

    @hookimpl(tryfirst=True)
    def check_request(self, draft: Draft) -> None:
        """First, since other units choose a size where there is none."""
        info = probe_video(draft.inputs(self).video)
        self._settle_size(draft, info, has_picture=draft.given("image") is not None)
        draft.has_length |= not info.is_still

    @hookimpl(wrapper=True, specname="check_request")
    def check_leading(self, draft: Draft) -> Iterator[None]:
        """When all have said what they put in front of the video."""
        yield
        if draft.leading:
            raise PlanError(
                f"video-to-video starts from footage of the video alone, and other units put {draft.leading} pictures "
                "in front of it; leave these pictures out, or -video-to-video"
            )

    @hookimpl(tryfirst=True)
    def begin_job(self, job: Job) -> None:
        source = job.inputs(self).video
        info = probe_video(source)
        self._settle_size(
            job, info, has_picture=any(getattr(one, "image", None) is not None for one in job.inputs_by_unit.values())
        )
        job["video-to-video.info"] = info

    @hookimpl(trylast=True, specname="begin_job")
    def open_footage(self, job: Job) -> None:
        """Last, when the size is settled, and since a sound sets the length before all others."""
        info: VideoInfo = job["video-to-video.info"]
        footage = Footage(job.inputs(self).video, fps=job.fps, size=job.size, info=info)
        job["video-to-video.footage"] = job.resources.enter_context(footage)
        if job.frames is None:
            job.frames = footage.length
        if footage.length is not None and footage.length < job.length:
            log.warning(
                "%s has %d frames at %d a second, and the video %d; behind them its last picture stays",
                footage.name,
                footage.length,
                job.fps,
                job.length,
            )

    def _settle_size(self, job: Job | Draft, info: VideoInfo, *, has_picture: bool) -> None:
        """Let the footage set the size, at most its own, if no picture will."""
        if not has_picture:
            pixels = min(self.settings.pixels, info.height * info.width)
            settle_size(job, lambda: size_near(info.height, info.width, pixels, multiple_of(job)))

    @hookimpl
    def begin_window(self, window: Window) -> None:
        footage: Footage = window["video-to-video.footage"]
        pictures = footage.read(window.span.start, window.span.stop, hold=True, device=window.engine.device)
        if window.steps and window.steps[0].sigma >= 1:
            log.warning(
                "denoising begins at the noise level 1, which leaves nothing of the footage; "
                "set schedule.strength below 1, or begin the list of levels lower"
            )
        window["start_latents"] = encode(window.engine, pictures * 2 - 1, tiled=self.settings.tiled)
