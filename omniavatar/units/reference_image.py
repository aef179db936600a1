"""The reference image: chooses the size of the video and gives the transformer its condition channels."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from omniavatar.engine.scopes import Job, Window
from omniavatar.engine.unit import ImageFile, PipelineUnit, UnitInputs, UnitSettings
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.image import choose_size, fit_image, load_image
from omniavatar.models.tiling import ENCODE_TILING

MULTIPLE = 16


class ReferenceImage(PipelineUnit):
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
        fit: Literal["cover", "original"] = Field(
            "cover", description="'original' rounds as the first OmniAvatar program did, which can leave one black line"
        )

        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

        @field_validator("sizes")
        @classmethod
        def _usable(cls, sizes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
            for size in sizes:
                if not is_usable(size):
                    raise ValueError(f"{list(size)} is not made of positive multiples of {MULTIPLE}")
            return sizes

    class Inputs(UnitInputs):
        image: ImageFile | None = Field(None, description="the portrait, any format that Pillow reads")

    settings: Settings

    @hookimpl
    def begin_job(self, job: Job) -> None:
        path = job.inputs(self).image
        picture = None if path is None else load_image(path)
        if job.height is None or job.width is None:
            job.height, job.width = self._size_for(picture)
        if not is_usable(job.size):
            height, width = job.size
            raise InputError(f"the size {height}x{width} is not made of positive multiples of {MULTIPLE}")
        job["image_latent"] = None if picture is None else self._encode(job, picture)

    def _size_for(self, picture: np.ndarray | None) -> tuple[int, int]:
        """The size of the table that suits a picture (h w 3); the first one without a picture."""
        if picture is None:
            return self.settings.sizes[0]
        height, width = picture.shape[:2]
        return choose_size(height, width, self.settings.sizes)

    def _encode(self, job: Job, picture: np.ndarray) -> Tensor:
        """The latent (1 c 1 h w) of a picture (h w 3), fitted to the video's size."""
        engine = job.engine
        fitted = fit_image(picture, job.size, original_rounding=self.settings.fit == "original")
        tiling = ENCODE_TILING if self.settings.tiled else None
        latent: Tensor = engine.model("vae").encode(fitted.unsqueeze(2).to(engine.device, engine.dtype), tiling=tiling)
        return latent.float()

    @hookimpl
    def begin_window(self, window: Window) -> None:
        channels = condition(window.video_latents, window["image_latent"], window.span.given_latents)
        window["condition"] = behind_leading(channels, window.job.leading)


def is_usable(size: tuple[int, int]) -> bool:
    """Whether VAE and patches divide both sides without a rest."""
    return all(side >= MULTIPLE and side % MULTIPLE == 0 for side in size)


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
