"""What the units that take pictures share: the size of the video, and what the VAE makes of pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from omniavatar.errors import InputError
from omniavatar.models.tiling import ENCODE_TILING

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.draft import Draft
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Job

Size = tuple[int, int]
MULTIPLE = 16
"""Pixels of a side that a patch of the Wan 2.1 latents covers."""


def is_usable(size: Size, multiple: int = MULTIPLE) -> bool:
    """Whether VAE and patches divide both sides without a rest."""
    return all(side >= multiple and side % multiple == 0 for side in size)


def usable_sizes(sizes: tuple[Size, ...], multiple: int = MULTIPLE) -> tuple[Size, ...]:
    """The sizes of a setting. Raises ValueError, as pydantic expects it, that names the first that is not usable."""
    for size in sizes:
        if not is_usable(size, multiple):
            raise ValueError(f"{list(size)} is not made of positive multiples of {multiple}")
    return sizes


def settle_size(job: Job | Draft, choose: Callable[[], Size], multiple: int = MULTIPLE) -> None:
    """Give the video the size (height, width) that `choose` says, unless it has one.

    Raises InputError if the size that it has is not usable.
    """
    if job.height is None or job.width is None:
        job.height, job.width = choose()
    check_size((job.height, job.width), multiple)


def check_size(size: Size, multiple: int) -> None:
    """Raise InputError unless both sides are multiples."""
    if not is_usable(size, multiple):
        raise InputError(f"the size {size[1]}x{size[0]} is not made of positive multiples of {multiple}")


def encode(engine: Engine, pictures: Tensor, *, tiled: bool = False) -> Tensor:
    """Latents (1 c t h w), float32, of pictures (1 3 f H W) in [-1, 1].

    tiled: in overlapping tiles, which takes less memory and twice the work.
    """
    tiling = ENCODE_TILING if tiled else None
    latents: Tensor = engine.model("vae").encode(pictures.to(engine.device, engine.dtype), tiling=tiling)
    return latents.float()
