"""The reference image: chooses the size of the video and gives the transformer its condition channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from omniavatar.engine.pictures import check_sizes, encode, usable_sizes
from omniavatar.engine.saving import SavesMemory
from omniavatar.engine.unit import ImageFile, PipelineUnit, UnitInputs, UnitSettings
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import functional, torch
from omniavatar.media.image import choose_size, fit_image, load_image, picture_size

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from omniavatar.engine.draft import Draft
    from omniavatar.engine.outline import Outline
    from omniavatar.engine.scopes import Job, Window

MASK_CHANNELS = 1


class ReferenceImage(PipelineUnit, SavesMemory):
    """Who is talking: a picture that becomes frame 0 and conditions every frame.

    The video takes the size from the table whose shape is nearest to the picture's; the picture is scaled to cover it
    and cropped in the middle. Without a picture the condition is empty and the video shows what the prompt says.
    """

    name = "reference-image"
    provides = ("image_latent", "condition")
    roles = ("vae",)

    class Settings(UnitSettings):
        sizes: tuple[tuple[int, int], ...] = Field(
            ((400, 720), (720, 720), (720, 400)),
            min_length=1,
            description="sizes to choose from, [height, width] in pixels",
        )

        @field_validator("sizes")
        @classmethod
        def _positive(cls, sizes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
            return usable_sizes(sizes, 1)

        fit: Literal["cover", "original"] = Field(
            "cover", description="'original' rounds as the first OmniAvatar program did, which can leave one black line"
        )
        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

    class Inputs(UnitInputs):
        image: ImageFile | None = Field(None, description="who talks: a portrait, in any format that Pillow reads")

    settings: Settings

    def smaller(self, work: str, window: Window | None) -> Mapping[str, Any]:
        return {"tiled": True} if work == "prepare" and window is None and not self.settings.tiled else {}

    @hookimpl
    def plan_size(self, video: Outline) -> tuple[int, int]:
        """The size of the table that suits the picture; the first one without a picture."""
        check_sizes(video, self.name, self.settings.sizes)
        source = video.inputs(self).image
        return self.settings.sizes[0] if source is None else choose_size(*picture_size(source), self.settings.sizes)

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        channels = draft.latent_channels
        check_sizes(draft, self.name, self.settings.sizes)
        draft.condition = None if channels is None else channels + MASK_CHANNELS

    @hookimpl
    def begin_job(self, job: Job) -> None:
        source = job.inputs(self).image
        picture = None if source is None else load_image(source)
        job["image_latent"] = None
        if picture is not None:
            fitted = self.fitted(picture, job)
            job["image_latent"] = encode(job.engine, fitted.unsqueeze(2), tiled=self.settings.tiled)

    def fitted(self, picture: np.ndarray, job: Job) -> Tensor:
        """A picture (h w 3) at the video's size: (1 3 H W) in [-1, 1]."""
        return fit_image(picture, job.size, original_rounding=self.settings.fit == "original")

    @hookimpl
    def begin_window(self, window: Window) -> None:
        channels = condition(window.video_latents, window["image_latent"], window.given_latent_frames)
        window["condition"] = behind_leading(channels, window.job.leading)


def condition(latents: Tensor, image_latent: Tensor | None, given: int) -> Tensor:
    """The condition channels (b c+1 t h w): the image's latent in every frame, and a mask that is 0 on given frames."""
    image = torch.zeros_like(latents) if image_latent is None else image_latent.expand_as(latents)
    mask = torch.ones_like(latents[:, :1])
    mask[:, :, :given] = 0
    return torch.cat([image, mask], dim=1)


def behind_leading(channels: Tensor, leading: int) -> Tensor:
    """Condition channels (b c t h w) behind those of leading frames, which say: no picture, nothing given."""
    padded = functional.pad(channels, (0, 0, 0, 0, leading, 0))
    padded[:, -1:, :leading] = 1
    return padded
