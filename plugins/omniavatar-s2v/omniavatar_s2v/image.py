"""The reference picture: who speaks, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from omniavatar.sdk import (
    ImageFile,
    PipelineUnit,
    UnitInputs,
    UnitSettings,
    check_size,
    choose_size,
    encode_pictures,
    fit_image,
    hookimpl,
    load_image,
    picture_size,
    usable_sizes,
)
from omniavatar_s2v.shared import FOR_S2V

if TYPE_CHECKING:
    from omniavatar.sdk import Draft, Job, Outline

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
    def plan_size(self, video: Outline) -> tuple[int, int]:
        return choose_size(*picture_size(video.inputs(self).image), self.settings.sizes)

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        if draft.size is not None:
            check_size(draft.size, MULTIPLE)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        picture = load_image(job.inputs(self).image)
        fitted = fit_image(picture, job.size)
        job["image_latent"] = encode_pictures(job.engine, fitted.unsqueeze(2), tiled=self.settings.tiled)
