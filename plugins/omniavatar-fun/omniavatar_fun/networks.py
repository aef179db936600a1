"""What the Fun models have beside the transformer: a layer for a reference picture, an adapter for camera rays.

    reference = ReferenceEmbedding(in_dim=16, dim=1536, patch_size=(1, 2, 2))
    adapter = CameraAdapter(in_dim=24, dim=1536, num_blocks=1)

State-dict keys as in the official files, where the adapter's are behind `control_adapter.`.
Letters in shapes: b batch, c channels, f latent frames, h w latent rows and columns, H W pixels, s tokens, d width.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from omniavatar.sdk import Grid, check_patch_size

CELL = 8
"""Pixels of a latent's side, which become channels."""


class ReferenceEmbedding(nn.Module):
    """The latent of a picture as one more frame of tokens."""

    def __init__(self, *, in_dim: int, dim: int, patch_size: Grid) -> None:
        super().__init__()
        frames, rows, columns = check_patch_size(patch_size)
        if frames != 1:
            raise ValueError(f"patch_size {patch_size} spans {frames} frames, and a picture is one")
        self.in_dim, self.dim = in_dim, dim
        self.ref_conv = nn.Conv2d(in_dim, dim, kernel_size=(rows, columns), stride=(rows, columns))

    def forward(self, latent: Tensor) -> Tensor:
        """(b c 1 h w) -> (b s d) in row-column order."""
        tokens: Tensor = self.ref_conv(latent[:, :, 0].to(self.ref_conv.weight.dtype))
        return rearrange(tokens, "b d h w -> b (h w) d")


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), 3x3."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b d h w) -> (b d h w)."""
        residual: Tensor = self.conv2(functional.relu(self.conv1(x)))
        return x + residual


class CameraAdapter(nn.Module):
    """The rays of every pixel, frame by frame, as tokens that are added to those of the video."""

    def __init__(self, *, in_dim: int, dim: int, num_blocks: int) -> None:
        super().__init__()
        self.in_dim, self.dim = in_dim, dim
        self.conv = nn.Conv2d(in_dim * CELL**2, dim, kernel_size=2, stride=2)
        self.residual_blocks = nn.Sequential(*(ResidualBlock(dim) for _ in range(num_blocks)))

    def forward(self, rays: Tensor) -> Tensor:
        """(b c f H W) -> (b s d) in frame-row-column order."""
        frames = rearrange(rays.to(self.conv.weight.dtype), "b c f h w -> (b f) c h w")
        tokens: Tensor = self.residual_blocks(self.conv(functional.pixel_unshuffle(frames, CELL)))
        return rearrange(tokens, "(b f) d h w -> b (f h w) d", b=len(rays))
