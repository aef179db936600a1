"""The condition channels of image-to-video networks: a mask of the frames that are known, and the VAE's view of them.

    channels = image_condition(vae, video, known)   # (1 20 t h w) for the Wan 2.1 VAE

All functions are plain ones on tensors, for units that know other frames than the first and the last.
Letters in shapes: b batch, c channels, t latent frames, f = 4t-3 frames, h w latent rows and columns, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from einops import rearrange

from omniavatar.sdk import functional, torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Tiling

TEMPORAL_FACTOR = 4
"""Frames of a latent of Wan's VAEs, which the masks of these networks are made for."""


def fold_frames(frames: Tensor) -> Tensor:
    """(b c f h w) -> (b 4c t h w): the four frames of a latent frame side by side in channels, channel by channel.

    The first latent frame covers one frame only, which fills all four.
    """
    whole = torch.cat([frames[:, :, :1].expand(-1, -1, TEMPORAL_FACTOR - 1, -1, -1), frames], dim=2)
    return rearrange(whole, "b c (t four) h w -> b (c four) t h w", four=TEMPORAL_FACTOR)


def frame_mask(known: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask channels (1 4 t h w) of frames (f), 1 where a frame is known, 0 where it is to be made."""
    return fold_frames(known.float()[None, None, :, None, None].expand(-1, -1, -1, *size))


def image_condition(vae: Any, video: Tensor, known: Tensor, *, tiling: Tiling | None = None) -> Tensor:
    """Mask and latents (1 4+z t h w), float32, of a video (1 3 f H W) in [-1, 1], 0 in frames not known (f)."""
    latents: Tensor = vae.encode(video, tiling=tiling).float()
    height, width = latents.shape[-2:]
    return torch.cat([frame_mask(known.to(latents.device), (height, width)), latents], dim=1)


def no_condition(latents: Tensor) -> Tensor:
    """The channels (1 4+z t h w) that say that nothing is known, for latents (1 z t h w): zeros."""
    return latents.new_zeros(latents.shape[0], TEMPORAL_FACTOR + latents.shape[1], *latents.shape[2:])


def behind_leading(channels: Tensor, leading: int) -> Tensor:
    """Condition channels (b c t h w) behind those of leading frames, of which nothing is known."""
    return functional.pad(channels, (0, 0, 0, 0, leading, 0))
