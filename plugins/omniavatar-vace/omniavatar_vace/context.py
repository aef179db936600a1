"""From control video, mask and reference pictures to the channels that the VACE branch sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from einops import rearrange

from omniavatar.sdk import functional, resized, torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Encode = Callable[[Tensor], Tensor]
    """Pictures (1 3 t H W) in [-1, 1] to latents (1 c t' h w)."""


def filled(frames: Tensor, length: int, total: int, value: float) -> Tensor:
    """Frames (1 c n H W) with frames of `value` behind them, `length` in all, and the last repeated up to `total`."""
    frames = functional.pad(frames, (0, 0, 0, 0, 0, length - frames.shape[2]), value=value)
    return torch.cat([frames, frames[:, :, -1:].expand(-1, -1, total - length, -1, -1)], dim=2)


def vace_context(video: Tensor, mask: Tensor, references: Sequence[Tensor], encode: Encode, cell: int) -> Tensor:
    """The channels of the branch (1 2c+cell^2 f+t' h w): latents of what stays and of what changes, and the mask.

    video (1 3 t H W) in [-1, 1], mask (1 1 t H W) in [0, 1] with 1 where pictures are made, references: f latents
    (1 c 1 h w) that come in front. cell: pixels of a latent's side, so that a latent has cell * cell mask values.
    """
    latents = torch.cat([encode(video * (1 - mask)), encode(video * mask)], dim=1)
    channels = torch.cat([latents, folded_mask(mask, latents.shape[2], cell)], dim=1)
    count = channels.shape[1]
    leading = [functional.pad(latent, (0, 0, 0, 0, 0, 0, 0, count - latent.shape[1])) for latent in references]
    return torch.cat([*leading, channels], dim=2)


def folded_mask(mask: Tensor, latent_frames: int, cell: int) -> Tensor:
    """A mask (1 1 t h*cell w*cell) with its cells as channels, row by row: (1 cell^2 t' h w)."""
    cells = rearrange(mask, "b 1 t (h p) (w q) -> b (p q) t h w", p=cell, q=cell)
    return functional.interpolate(cells, size=(latent_frames, *cells.shape[-2:]), mode="nearest-exact")


def on_white(picture: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A picture (h w 3) uint8, whole, in the middle of a white one: (1 3 H W) in [-1, 1]."""
    height, width = picture.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    x = resized(picture, (rows, columns)) * 2 - 1
    top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
    return functional.pad(x, (left, size[1] - columns - left, top, size[0] - rows - top), value=1.0)
