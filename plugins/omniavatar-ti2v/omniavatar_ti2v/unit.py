"""Wan 2.2 TI2V: the picture is the first latent frame itself, and its tokens are told that they carry no noise."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from omniavatar.engine.scopes import Forward, Job
from omniavatar.engine.unit import ImageFile, PipelineUnit, UnitInputs, UnitSettings
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.image import choose_size, fit_image, load_image
from omniavatar.models.tiling import ENCODE_TILING

MULTIPLE = 32


class Ti2v(PipelineUnit):
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
            job.height, job.width = self.size_for(picture)
        if not is_usable(job.size):
            height, width = job.size
            raise InputError(f"the size {height}x{width} is not made of positive multiples of {MULTIPLE}")
        job["image_latent"] = None if picture is None else self.encode(job, fit_image(picture, job.size))

    def size_for(self, picture: np.ndarray | None) -> tuple[int, int]:
        """The size of the table that suits a picture (h w 3); the first one without a picture."""
        if picture is None:
            return self.settings.sizes[0]
        height, width = picture.shape[:2]
        return choose_size(height, width, self.settings.sizes)

    def encode(self, job: Job, picture: Tensor) -> Tensor:
        """The latent (1 c 1 h w) of a picture (1 3 h w)."""
        engine = job.engine
        video = picture.unsqueeze(2).to(engine.device, engine.dtype)
        latent: Tensor = engine.model("vae").encode(video, tiling=ENCODE_TILING if self.settings.tiled else None)
        return latent.float()

    @hookimpl
    def embed(self, forward: Forward) -> None:
        given = forward["given_latents"]
        if given is not None:
            forward.time, forward.t_mod = times(forward, given.shape[2])


def is_usable(size: tuple[int, int]) -> bool:
    """Whether VAE and patches divide both sides without a rest."""
    return all(side >= MULTIPLE and side % MULTIPLE == 0 for side in size)


def times(forward: Forward, given: int) -> tuple[Tensor, Tensor]:
    """Time embedding (1 s d) and modulation (1 s 6 d) of every token: those of time step 0 in the first `given` frames.

    There are only two time steps, so only two embeddings are computed.
    """
    frames = forward.frame_index
    both = forward.step.timestep * torch.arange(2, dtype=torch.float64, device=frames.device)
    t_emb, t_mod = forward.network.embed_time(both)
    is_noisy = ((frames < 0) | (frames >= given)).long()
    return t_emb[None, is_noisy], t_mod[None, is_noisy]
