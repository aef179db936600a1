"""The reference picture: who speaks, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from omniavatar.sdk import (
    ENCODE_TILING,
    ImageFile,
    PipelineUnit,
    UnitInputs,
    UnitSettings,
    choose_size,
    fit_image,
    hookimpl,
    load_image,
    picture_size,
    settle_size,
    usable_sizes,
)
from omniavatar_s2v.shared import FOR_S2V

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Draft, Job

MULTIPLE = 64
"""Pixels of a side that one of the coarsest patches, those of the oldest frames, covers."""


class S2VImage(PipelineUnit):
    """The picture that S2V looks at in every clip; it is not a frame of the video.

    The video takes the size from the table whose shape is nearest to the picture's; the picture is scaled to cover it
    and cropped in the middle.
    """

    name = "s2v-image"
    provides = ("image_latent",)
    conflicts: ClassVar = {"transformer": FOR_S2V, "reference-image": "S2V sees the picture through s2v-image"}
    roles = ("vae",)

    class Settings(UnitSettings):
        sizes: tuple[tuple[int, int], ...] = Field(
            ((448, 832), (512, 704), (640, 640), (704, 512), (832, 448)),
            min_length=1,
            description=f"sizes to choose from, [height, width] in pixels, multiples of {MULTIPLE}",
        )
        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

        @field_validator("sizes")
        @classmethod
        def _usable(cls, sizes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
            return usable_sizes(sizes, MULTIPLE)

    class Inputs(UnitInputs):
        image: ImageFile = Field(description="the picture of who speaks, any format that Pillow reads")

    settings: Settings

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        shape = picture_size(draft.inputs(self).image)
        settle_size(draft, lambda: choose_size(*shape, self.settings.sizes), MULTIPLE)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        picture = load_image(job.inputs(self).image)
        height, width = picture.shape[:2]
        settle_size(job, lambda: choose_size(height, width, self.settings.sizes), MULTIPLE)
        job["image_latent"] = self.encode(job, fit_image(picture, job.size))

    def encode(self, job: Job, picture: Tensor) -> Tensor:
        """The latent (1 c 1 h w) of a picture (1 3 h w)."""
        engine = job.engine
        video = picture.unsqueeze(2).to(engine.device, engine.dtype)
        latent: Tensor = engine.model("vae").encode(video, tiling=ENCODE_TILING if self.settings.tiled else None)
        return latent.float()
