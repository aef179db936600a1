"""The causal video VAE of Wan 2.2 TI2V: pixels (b 3 1+4k 16h 16w) in [-1, 1] <-> latents (b 48 1+k h w).

    vae = WanVAE38(dim=160, dec_dim=256, z_dim=48, dim_mult=(1, 2, 4, 4), num_res_blocks=2,
                   temporal_downsample=(False, True, True), patch=2, latent_mean=..., latent_std=...)

It is made of the blocks of the Wan 2.1 VAE and differs in three ways: squares of 2x2 pixels are folded into channels
first; a second path around every level only averages, or copies, pixels and frames; and the decoder is wider than the
encoder. Source: the README of https://github.com/Wan-Video/Wan2.2, section "Efficient High-Definition Hybrid TI2V".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from omniavatar.sdk import (
    CausalCache,
    CausalConv3d,
    CausalStack,
    CausalVAE,
    Downsample,
    ResidualBlock,
    Upsample,
    check_levels,
    vae_head,
    vae_middle,
)


class WanVAE38(CausalVAE):
    """The VAE of Wan 2.2 TI2V: 16x16 pixels and 4 frames a latent.

    dim, dec_dim: channels of encoder and decoder at the finest level; patch: side of the squares that are folded.
    """

    def __init__(  # noqa: PLR0913 - the numbers of a published configuration
        self,
        *,
        dim: int,
        dec_dim: int,
        z_dim: int,
        dim_mult: Sequence[int],
        num_res_blocks: int,
        temporal_downsample: Sequence[bool],
        patch: int,
        latent_mean: Sequence[float],
        latent_std: Sequence[float],
    ) -> None:
        check_levels(temporal_downsample, dim_mult)
        widths = [dim, *(dim * factor for factor in dim_mult)]
        decoder_widths = [dec_dim * factor for factor in (dim_mult[-1], *dim_mult[::-1])]
        super().__init__(
            Encoder(widths, 2 * z_dim, num_res_blocks, temporal_downsample, patch),
            Decoder(decoder_widths, z_dim, num_res_blocks, temporal_downsample[::-1], patch),
            z_dim=z_dim,
            spatial_factor=patch * 2 ** len(temporal_downsample),
            temporal_factor=2 ** sum(temporal_downsample),
            latent_mean=latent_mean,
            latent_std=latent_std,
        )


class Encoder(nn.Module):
    """Frames (b 3 t 16h 16w) -> moments (b out_dim t/4 h w); frame 0 alone gives latent frame 0.

    `widths` are the channels before the first level and after each one, from the finest to the coarsest.
    """

    def __init__(
        self,
        widths: Sequence[int],
        out_dim: int,
        num_res_blocks: int,
        temporal_downsample: Sequence[bool],
        patch: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv1 = CausalConv3d(3 * patch**2, widths[0], (3, 3, 3))
        self.downsamples = nn.ModuleList(
            DownLevel(before, after, num_res_blocks, temporal)
            for (before, after), temporal in zip(pairwise(widths), (*temporal_downsample, None), strict=True)
        )
        self.middle = vae_middle(widths[-1])
        self.head = vae_head(widths[-1], out_dim)

    def forward(self, frames: Tensor, cache: CausalCache) -> Tensor:
        x = self.conv1(folded(frames, self.patch), cache)
        for level in self.downsamples:
            x = level(x, cache)
        x = self.middle(x, cache)
        moments: Tensor = self.head(x, cache)
        return moments


class Decoder(nn.Module):
    """Latents (b z t h w) -> frames (b 3 4t 16h 16w); latent frame 0 alone gives frame 0.

    `widths` are the channels before the first level and after each one, from the coarsest to the finest.
    """

    def __init__(
        self,
        widths: Sequence[int],
        z_dim: int,
        num_res_blocks: int,
        temporal_upsample: Sequence[bool],
        patch: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv1 = CausalConv3d(z_dim, widths[0], (3, 3, 3))
        self.middle = vae_middle(widths[0])
        self.upsamples = nn.ModuleList(
            UpLevel(before, after, num_res_blocks + 1, temporal)
            for (before, after), temporal in zip(pairwise(widths), (*temporal_upsample, None), strict=True)
        )
        self.head = vae_head(widths[-1], 3 * patch**2)

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        x = self.conv1(x, cache)
        x = self.middle(x, cache)
        for level in self.upsamples:
            x = level(x, cache)
        return unfolded(self.head(x, cache), self.patch)


class DownLevel(nn.Module):
    """Residual blocks and a step to half the height and width; averages of what came in are added.

    temporal: whether the step halves the frames as well; None for the last level, which has no step.
    """

    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, temporal: bool | None) -> None:
        super().__init__()
        layers: list[nn.Module] = residual_blocks(in_dim, out_dim, num_res_blocks)
        if temporal is not None:
            layers.append(Downsample(out_dim, temporal=temporal))
        self.downsamples = CausalStack(layers)
        self.out_dim = out_dim
        self.cell = cell_of(temporal)
        check_shared(in_dim * self.cell[0] * self.cell[1] ** 2, out_dim)

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        made: Tensor = self.downsamples(x, cache)
        return made + averaged(x, self.out_dim, *self.cell)


class UpLevel(nn.Module):
    """Residual blocks and a step to twice the height and width; copies of what came in are added.

    temporal: whether the step doubles the frames as well; None for the last level, which has no step and no copies.
    """

    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, temporal: bool | None) -> None:
        super().__init__()
        layers: list[nn.Module] = residual_blocks(in_dim, out_dim, num_res_blocks)
        if temporal is not None:
            layers.append(Upsample(out_dim, out_dim, temporal=temporal))
        self.upsamples = CausalStack(layers)
        self.out_dim = out_dim
        self.cell = None if temporal is None else cell_of(temporal)
        if self.cell is not None:
            check_shared(out_dim * self.cell[0] * self.cell[1] ** 2, in_dim)

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        made: Tensor = self.upsamples(x, cache)
        if self.cell is None:
            return made
        # Frame 0 is not doubled: its first copy has no counterpart.
        return made + copied(x, self.out_dim, *self.cell)[:, :, -made.shape[2] :]


def residual_blocks(in_dim: int, out_dim: int, count: int) -> list[nn.Module]:
    """Blocks of which the first changes the number of channels."""
    return [ResidualBlock(in_dim if index == 0 else out_dim, out_dim) for index in range(count)]


def cell_of(temporal: bool | None) -> tuple[int, int]:
    """Frames and pixels (of a side) that a step makes one of, or one into."""
    return 2 if temporal else 1, 1 if temporal is None else 2


def check_shared(values: int, channels: int) -> None:
    """The values of a cell are dealt out to channels in equal groups."""
    if values % channels:
        raise ValueError(f"{values} values of a cell do not divide into {channels} channels; choose other widths")


def averaged(x: Tensor, out_dim: int, frames: int, pixels: int) -> Tensor:
    """(b c t h w) -> (b out t/frames h/pixels w/pixels): means of a cell's values; zeros stand in front of frame 0."""
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % frames, 0))
    values = rearrange(x, "b c (t ft) (h fh) (w fw) -> b (c ft fh fw) t h w", ft=frames, fh=pixels, fw=pixels)
    return reduce(values, "b (o g) t h w -> b o t h w", "mean", o=out_dim)


def copied(x: Tensor, out_dim: int, frames: int, pixels: int) -> Tensor:
    """(b c t h w) -> (b out frames*t pixels*h pixels*w): each channel repeated until it fills its part of a cell."""
    values = repeat(x, "b c t h w -> b (c n) t h w", n=out_dim * frames * pixels**2 // x.shape[1])
    return rearrange(values, "b (o ft fh fw) t h w -> b o (t ft) (h fh) (w fw)", ft=frames, fh=pixels, fw=pixels)


def folded(frames: Tensor, patch: int) -> Tensor:
    """Squares of pixels into channels: (b c t (h p) (w p)) -> (b c*p*p t h w), columns before rows."""
    return rearrange(frames, "b c t (h q) (w r) -> b (c r q) t h w", q=patch, r=patch)


def unfolded(channels: Tensor, patch: int) -> Tensor:
    """The opposite of `folded`."""
    return rearrange(channels, "b (c r q) t h w -> b c t (h q) (w r)", q=patch, r=patch)
