"""Poses: a video of skeletons that the person follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from omniavatar.sdk import (
    Footage,
    PipelineUnit,
    UnitInputs,
    UnitSettings,
    VideoFile,
    encode_pictures,
    functional,
    hookimpl,
    opened_footage,
    torch,
)
from omniavatar_s2v.shared import FOR_S2V

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Footage, Job, Window

BLACK = -1.0


class S2VPose(PipelineUnit):
    """How the person moves, as a video of drawn skeletons; frame n of it is frame n of the video.

    Without one the movement follows prompt and voice. Behind its end the pictures are black.
    """

    name = "s2v-pose"
    provides = ("pose_latents",)
    conflicts: ClassVar = {"transformer": FOR_S2V}
    roles = ("vae",)

    class Settings(UnitSettings):
        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

    class Inputs(UnitInputs):
        pose: VideoFile | None = Field(None, description="a video of drawn poses")

    settings: Settings

    @hookimpl
    def begin_job(self, job: Job) -> None:
        source = job.inputs(self).pose
        job["s2v-pose.footage"] = None if source is None else opened_footage(source, job)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        footage: Footage | None = window["s2v-pose.footage"]
        window["pose_latents"] = None if footage is None else self.encode(window, pose_frames(footage, window))

    def encode(self, window: Window, frames: Tensor) -> Tensor:
        """Pictures (1 3 4t h w) -> latents (1 c t h w). One is added, since a VAE's first latent is of one picture."""
        video = torch.cat([frames[:, :, :1], frames], dim=2)
        return encode_pictures(window.engine, video, tiled=self.settings.tiled)[:, :, 1:]


def pose_frames(footage: Footage, window: Window) -> Tensor:
    """The pictures of the frames that a window denoises (1 3 4t h w) in [-1, 1]."""
    span = window.span
    begin = span.start + span.given
    start = max(0, begin)
    frames = footage.read(start, span.stop, device=window.engine.device) * 2 - 1
    if frames.shape[2]:  # frames in front of the video, which are not shown, stand still
        frames = torch.cat([frames[:, :, :1].expand(-1, -1, start - begin, -1, -1), frames], dim=2)
    missing = span.stop - begin - frames.shape[2]
    return functional.pad(frames, (0, 0, 0, 0, 0, missing), value=BLACK)
