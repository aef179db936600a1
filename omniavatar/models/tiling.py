"""Spatial tiles: apply a network to overlapping pieces of a video and blend the results.

`map_tiles(network, x, Tiling(size=(30, 52), stride=(15, 26)), ...)` bounds the memory by the tile, at the price of
computing every overlap again. Sizes and strides are in latent pixels, whichever side of the VAE is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """Tile size and distance between two tile starts, each (height, width) in latent pixels."""

    size: tuple[int, int] = (34, 34)
    stride: tuple[int, int] = (18, 16)

    def __post_init__(self) -> None:
        if any(not 1 <= stride <= size for size, stride in zip(self.size, self.stride, strict=True)):
            raise ValueError(
                f"tile stride {self.stride} does not fit tile size {self.size}: give 1 <= stride <= size on both axes"
            )

    @property
    def overlap(self) -> tuple[int, int]:
        """Latent pixels (height, width) that two neighbouring tiles share."""
        return self.size[0] - self.stride[0], self.size[1] - self.stride[1]


ENCODE_TILING = Tiling(size=(34, 34), stride=(18, 16))
DECODE_TILING = Tiling(size=(30, 52), stride=(15, 26))


@dataclass(frozen=True)
class Stretch:
    """One tile along one axis: [start, stop), and whether the axis begins or ends with it."""

    start: int
    stop: int
    first: bool
    last: bool

    def slice(self, scale: int) -> slice:
        """The span where one latent pixel is `scale` pixels."""
        return slice(self.start * scale, self.stop * scale)

    def ramp(self, overlap: int, device: torch.device) -> Tensor:
        """Blending weight of every pixel (n,): 1/overlap .. 1 inwards from each edge that has a neighbour.

        `start`, `stop` and `overlap` count the same pixels here. Where an overlap of more than half a tile makes the
        two ramps meet, the closing one holds, as in the original.
        """
        weights = torch.ones(self.stop - self.start, device=device)
        rising = torch.arange(1, overlap + 1, device=device) / overlap
        if overlap and not self.first:
            weights[:overlap] = rising
        if overlap and not self.last:
            weights[-overlap:] = rising.flip(0)
        return weights


def spans(length: int, size: int, stride: int) -> list[Stretch]:
    """Cover [0, length) with tiles of `size` every `stride`; the first tile that reaches the end is the last."""
    count = 1 + max(0, -(-(length - size) // stride))
    return [
        Stretch(start=i * stride, stop=min(i * stride + size, length), first=i == 0, last=i == count - 1)
        for i in range(count)
    ]


def tile_weights(rows: Stretch, columns: Stretch, tiling: Tiling, scale: int, device: torch.device) -> Tensor:
    """Blending weights (h w) of one tile whose latent pixels are `scale` pixels: the smaller of its two ramps."""
    ramps = [
        Stretch(span.start * scale, span.stop * scale, span.first, span.last).ramp(overlap * scale, device)
        for span, overlap in zip((rows, columns), tiling.overlap, strict=True)
    ]
    return torch.minimum(ramps[0][:, None], ramps[1][None, :])


def map_tiles(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    tiling: Tiling,
    *,
    latent_size: tuple[int, int],
    in_scale: int,
    out_scale: int,
) -> Tensor:
    """Apply `network` to every tile of `x` (... h w) and return sum(weight * result) / sum(weight) in float32.

    `latent_size` is the whole extent in latent pixels; `in_scale` and `out_scale` are pixels per latent pixel of
    `x` and of the result.
    """
    height, width = latent_size
    total: Tensor | None = None
    weight_sum = torch.zeros(height * out_scale, width * out_scale, device=x.device)
    row_spans = spans(height, tiling.size[0], tiling.stride[0])
    column_spans = spans(width, tiling.size[1], tiling.stride[1])
    for rows, columns in product(row_spans, column_spans):
        tile = network(x[..., rows.slice(in_scale), columns.slice(in_scale)])
        weights = tile_weights(rows, columns, tiling, out_scale, x.device)
        if total is None:
            total = torch.zeros(*tile.shape[:-2], *weight_sum.shape, device=x.device)
        target = (..., rows.slice(out_scale), columns.slice(out_scale))
        total[target] += tile * weights
        weight_sum[target] += weights
    assert total is not None
    return total.div_(weight_sum)
