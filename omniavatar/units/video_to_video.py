"""Video to video: the start of denoising comes from given footage instead of from noise alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from omniavatar.engine.outline import length_of
from omniavatar.engine.pictures import MULTIPLE, encode, opened_footage
from omniavatar.engine.residency import IdleInSteps
from omniavatar.engine.saving import SavesMemory
from omniavatar.engine.unit import PipelineUnit, UnitInputs, UnitSettings, VideoFile
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.image import size_near
from omniavatar.media.video import probe_video

if TYPE_CHECKING:
    from omniavatar.engine.draft import Draft
    from omniavatar.engine.outline import Length, Outline
    from omniavatar.engine.scopes import Job, Window
    from omniavatar.media.footage import Footage

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
    def plan_size(self, video: Outline) -> tuple[int, int] | None:
        """The footage's, or a smaller one, if no picture says another; first, since others choose one in any case."""
        if video.given("image") is not None:
            return None
        info = probe_video(video.inputs(self).video)
        pixels = min(self.settings.pixels, info.height * info.width)
        return size_near(info.height, info.width, pixels, video.multiple)

    @hookimpl
    def plan_length(self, video: Outline) -> Length | None:
        return length_of(video.fps, video.inputs(self).video, is_limit=False)

    @hookimpl(wrapper=True, specname="check_request")
    def check_leading(self, draft: Draft) -> Iterator[None]:
        """When all have said what they put in front of the video."""
        yield
        if draft.leading:
            raise PlanError(
                f"video-to-video starts from footage of the video alone, and other units put {draft.leading} pictures "
                "in front of it; leave these pictures out, or -video-to-video"
            )

    @hookimpl
    def begin_job(self, job: Job) -> None:
        footage = job["video-to-video.footage"] = opened_footage(job.inputs(self).video, job)
        if footage.length is not None and footage.length < job.length:
            log.warning(
                "%s has %d frames at %d a second, and the video %d; behind them its last picture stays",
                footage.name,
                footage.length,
                job.fps,
                job.length,
            )

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
