"""What the units that take pictures share: the size of the video, and what the VAE makes of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omniavatar.errors import InputError, PlanError
from omniavatar.media.footage import Footage
from omniavatar.models.tiling import ENCODE_TILING

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.engine import Engine
    from omniavatar.engine.outline import Outline
    from omniavatar.engine.scopes import Job

Size = tuple[int, int]
MULTIPLE = 16
"""Pixels of a side of a token of the Wan 2.1 models: for sizes that are settled before the networks are known."""


def is_usable(size: Size, multiple: int = MULTIPLE) -> bool:
    """Whether VAE and patches divide both sides without a rest."""
    return all(side >= multiple and side % multiple == 0 for side in size)


def usable_sizes(sizes: tuple[Size, ...], multiple: int = MULTIPLE) -> tuple[Size, ...]:
    """The sizes of a setting. Raises ValueError, as pydantic expects it, that names the first that is not usable."""
    for size in sizes:
        if not is_usable(size, multiple):
            made_of = "whole numbers above 0" if multiple == 1 else f"positive multiples of {multiple}"
            raise ValueError(f"{list(size)} is not made of {made_of}")
    return sizes


def check_sizes(video: Outline, unit: str, sizes: tuple[Size, ...]) -> None:
    """Raise PlanError for a size of a unit's setting `sizes` that the networks cannot make, if they are known."""
    multiple = 1 if video.geometry is None else video.geometry.multiple
    for size in sizes:
        if not is_usable(size, multiple):
            raise PlanError(f"{unit}.sizes: {list(size)} is not made of positive multiples of {multiple}")


def check_size(size: Size, multiple: int) -> None:
    """Raise InputError unless both sides are multiples."""
    if not is_usable(size, multiple):
        raise InputError(f"the size {size[1]}x{size[0]} is not made of positive multiples of {multiple}")


def encode(engine: Engine, pictures: Tensor, *, tiled: bool = False) -> Tensor:
    """Latents (1 c t h w), float32, of pictures (1 3 f H W) in [-1, 1].

    tiled: in overlapping tiles, which takes less memory and twice the work.
    """
    tiling = ENCODE_TILING if tiled else None
    latents: Tensor = engine.model(engine.plan.autoencoder).encode(
        pictures.to(engine.device, engine.dtype), tiling=tiling
    )
    return latents.float()


def opened_footage(source: Any, job: Job, size: Size | None = None) -> Footage:
    """A video that is read along with the one that is made, until the job ends.

    size: height and width of its pictures, if not those of the video.
    """
    footage = Footage(source, fps=job.fps, size=size or job.size)
    return job.resources.enter_context(footage)
