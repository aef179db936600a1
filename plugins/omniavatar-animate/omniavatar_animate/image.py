"""Who moves: the reference picture in front of the video, and what of a real video is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from omniavatar_i2v.condition import TEMPORAL_FACTOR, fold_frames, frame_mask
from omniavatar_i2v.unit import ImageToVideo, image_features
from pydantic import Field

from omniavatar.sdk import (
    ImageFile,
    InputError,
    PlanError,
    UnitInputs,
    VideoFile,
    choose_size,
    encode_pictures,
    fit_image,
    functional,
    hookimpl,
    length_of,
    load_image,
    opened_footage,
    picture_size,
    probe_video,
    torch,
)
from omniavatar_animate.footage import frames_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from omniavatar.sdk import Draft, Footage, Job, Length, Outline, Window

BLACK = -1.0


class AnimateImage(ImageToVideo):
    """The person of an Animate video, from a picture that is a frame of its own in front of every window.

    With background and mask the person takes the place of somebody in a real video: where the mask is black, the
    background stays. The size is chosen by the background, else by the picture. The shortest of the videos limits the
    length. Later windows of a long video are conditioned on the frames that they take over.
    """

    name = "animate-image"
    provides: ClassVar[tuple[str, ...]] = ("reference_latent", "condition", "image_features")
    conflicts: ClassVar = {"sliding-window": "only its first piece would see the picture"}

    class Settings(ImageToVideo.Settings):
        fit: Literal["whole", "cover"] = Field(  # type: ignore[assignment]
            "whole", description="'whole' shows all of the picture on black, as in training; 'cover' crops it"
        )

    class Inputs(UnitInputs):
        image: ImageFile = Field(description="the person, any format that Pillow reads")
        background: VideoFile | None = Field(None, description="video or picture to put the person in")
        mask: VideoFile | None = Field(None, description="video or picture, white where the person is made")

    settings: Settings

    @hookimpl
    def plan_size(self, video: Outline) -> tuple[int, int]:
        """The size of the table that suits the background, or else the picture."""
        inputs = video.inputs(self)
        info = None if inputs.background is None else probe_video(inputs.background)
        shape = picture_size(inputs.image) if info is None else (info.height, info.width)
        return choose_size(*shape, self.settings.sizes)

    @hookimpl
    def plan_length(self, video: Outline) -> Length | None:
        inputs = video.inputs(self)
        return length_of(video.fps, inputs.background, inputs.mask)

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        inputs, channels = draft.inputs(self), draft.latent_channels
        if (inputs.background is None) != (inputs.mask is None):
            missing = "background" if inputs.background is None else "mask"
            raise InputError(f"to replace a person both background and mask are needed; give --{missing} as well")
        draft.condition = None if channels is None else TEMPORAL_FACTOR + channels
        draft.leading += 1

    @hookimpl(wrapper=True, specname="check_request")
    def check_leading(self, draft: Draft) -> Iterator[None]:
        """When all have said what they put in front of the video."""
        yield
        stands_alone(draft.leading)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        inputs = job.inputs(self)
        picture = load_image(inputs.image)
        for name in ("background", "mask"):
            source = getattr(inputs, name)
            job[f"animate-image.{name}"] = None if source is None else opened_footage(source, job)
        fitted = (on_black if self.settings.fit == "whole" else fit_image)(picture, job.size)
        job["reference_latent"] = encode_pictures(job.engine, fitted.unsqueeze(2), tiled=self.settings.tiled)
        job["image_features"] = image_features(job.engine, [fitted])
        job.leading += 1

    @hookimpl
    def begin_window(self, window: Window) -> None:
        stands_alone(window.job.leading)
        video, known = known_pictures(window, window["animate-image.background"], window["animate-image.mask"])
        latents = encode_pictures(window.engine, video, tiled=self.settings.tiled)
        reference = window["reference_latent"]
        height, width = latents.shape[-2:]
        known = functional.interpolate(known, size=(known.shape[2], height, width), mode="nearest")
        shown = frame_mask(torch.ones(1), (height, width)).to(reference)
        leading = torch.cat([shown, reference], dim=1)
        window["condition"] = torch.cat([leading, torch.cat([fold_frames(known).to(latents), latents], dim=1)], dim=2)


def stands_alone(leading: int) -> None:
    """Raise PlanError if there are other frames in front of the video than the picture."""
    if leading != 1:
        raise PlanError(
            f"animate-image puts 1 frame in front of the video and other units {leading - 1}; "
            "leave those units, or their reference pictures, out"
        )


def known_pictures(window: Window, background: Footage | None, mask: Footage | None) -> tuple[Tensor, Tensor]:
    """What a window's video shows already (1 3 f H W) in [-1, 1], 0 if nothing, and where (1 1 f H W), from 0 to 1."""
    span, size, device = window.span, window.job.size, window.engine.device
    video = torch.zeros(1, 3, span.frames, *size, device=device)
    known = torch.zeros(1, 1, span.frames, *size, device=device)
    if background is not None and mask is not None:
        video = frames_of(background, window) * 2 - 1
        known = 1 - frames_of(mask, window)[:, :1]
    if window.previous is not None:
        frames: Tensor = window.previous["frames"]
        video[:, :, : span.given] = frames[:, :, frames.shape[2] - span.given :] * 2 - 1
        known[:, :, : span.given] = 1
    return video, known


def on_black(picture: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A picture (h w 3) uint8, whole, in the middle of a black one: (1 3 H W) in [-1, 1]."""
    height, width = picture.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    margins = (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top)
    return functional.pad(fit_image(picture, inner), margins, value=BLACK)
