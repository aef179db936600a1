"""Wan 2.2 TI2V: the picture is the first latent frame itself, and its tokens are told that they carry no noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from omniavatar.sdk import (
    IdleInSteps,
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
    tell_noise,
    usable_sizes,
)

if TYPE_CHECKING:
    from omniavatar.sdk import Draft, Forward, Job, Outline

MULTIPLE = 32


class Ti2v(PipelineUnit, IdleInSteps):
    """Text and image to video by Wan 2.2 TI2V: the picture becomes frame 0, the prompt says what happens next.

    Tokens of given frames (the picture's, in later windows those of the window before) are told time step 0, the others
    that of the step; fixed-frames holds the frames. Without a picture the video shows what the prompt says.
    """

    name = "ti2v"
    # Of its own window; but it is read when all values are there, and fixed-frames in turn waits for the picture.
    needs = ("previous.given_latents",)
    provides = ("image_latent",)
    conflicts: ClassVar = {"condition": "TI2V takes no channels beside the latents; its picture is one of them"}
    roles = ("dit", "vae")
    idle_in_steps = ("vae",)

    class Settings(UnitSettings):
        sizes: tuple[tuple[int, int], ...] = Field(
            ((704, 1280), (1280, 704)),
            min_length=1,
            description="sizes to choose from, [height, width] in pixels, multiples of 32",
        )
        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

        @field_validator("sizes")
        @classmethod
        def _usable(cls, sizes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
            return usable_sizes(sizes, MULTIPLE)

    class Inputs(UnitInputs):
        image: ImageFile | None = Field(None, description="the portrait, any format that Pillow reads")

    settings: Settings

    @hookimpl
    def plan_size(self, video: Outline) -> tuple[int, int]:
        """The size of the table that suits the picture; the first one without a picture."""
        source = video.inputs(self).image
        return self.settings.sizes[0] if source is None else choose_size(*picture_size(source), self.settings.sizes)

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        if draft.size is not None:
            check_size(draft.size, MULTIPLE)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        source = job.inputs(self).image
        picture = None if source is None else load_image(source)
        job["image_latent"] = None
        if picture is not None:
            fitted = fit_image(picture, job.size)
            job["image_latent"] = encode_pictures(job.engine, fitted.unsqueeze(2), tiled=self.settings.tiled)

    @hookimpl
    def embed(self, forward: Forward) -> None:
        given = forward["given_latents"]
        if given is not None:
            frames, count = forward.frame_index, given.shape[2]
            tell_noise(self, forward, lambda: (frames < 0) | (frames >= count))
