"""The kernels behind `omniavatar.models.kernels`, in Triton. Importing this needs Triton."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from einops import rearrange
from torch import Tensor

ROWS, COLUMNS = 4, 32
"""Pixels that a program of `convolve_kernel` computes, for up to OUTPUTS channels."""
OUTPUTS = 128


def on_its_device(x: Tensor) -> AbstractContextManager[Any]:
    """Make the device of a tensor the current one, on which Triton starts kernels; compiled code does so by itself."""
    return nullcontext() if torch.compiler.is_compiling() or not x.is_cuda else torch.cuda.device(x.device)


# Convolutions --------------------------------------------------------------------------------------------------------


@triton.jit
def convolve_kernel(  # noqa: PLR0913, PLR0917 - a kernel has no objects
    past,  # (kt-1, h, w, c)
    present,  # (t, h, w, c)
    weight,  # (kt*kh*kw, c, n)
    bias,  # (n)
    result,  # (t, scale*h, scale*w, n)
    height,
    width,
    outputs,
    SCALE: tl.constexpr,
    C: tl.constexpr,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A matrix product for every tap of the convolution and every BLOCK_C channels."""
    parts = tl.cdiv(outputs, BLOCK_N)
    channels = tl.program_id(0) % parts * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = tl.program_id(0) // parts
    across = tl.cdiv(width * SCALE, BLOCK_W)
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    row = tile // across * BLOCK_H + pixel // BLOCK_W
    column = tile % across * BLOCK_W + pixel % BLOCK_W
    t = tl.program_id(1).to(tl.int64)
    chunks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    sums = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_N], dtype=tl.float32)
    for index in range(KT * KH * KW * chunks):
        tap = index // chunks
        c = index % chunks * BLOCK_C + tl.arange(0, BLOCK_C)
        frame = t + tap // (KH * KW) - (KT - 1)
        y, x = row + tap // KW % KH - KH // 2, column + tap % KW - KW // 2
        there = (y >= 0) & (y < height * SCALE) & (x >= 0) & (x < width * SCALE)
        size = height * width * C
        start = tl.where(frame < 0, past + (frame + KT - 1) * size, present + frame * size)
        place = (y // SCALE * width + x // SCALE) * C
        pixels = tl.load(start + place[:, None] + c[None, :], mask=there[:, None] & (c < C)[None, :], other=0.0)
        entry = ((tap * C + c) * outputs)[:, None] + channels[None, :]
        matrix = tl.load(weight + entry, mask=(c < C)[:, None] & (channels < outputs)[None, :], other=0.0)
        sums = tl.dot(pixels, matrix, sums)
    sums += tl.load(bias + channels, mask=channels < outputs, other=0.0).to(tl.float32)[None, :]
    start = result + t * (height * width * SCALE * SCALE * outputs)
    place = ((row * (width * SCALE) + column) * outputs)[:, None] + channels[None, :]
    inside = ((row < height * SCALE) & (column < width * SCALE))[:, None] & (channels < outputs)[None, :]
    tl.store(start + place, sums.to(result.dtype.element_ty), mask=inside)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, scale: int) -> Tensor:
    """See `kernels.convolve`."""
    count, c, kt, kh, kw = weight.shape
    taps = rearrange(weight, "n c kt kh kw -> (kt kh kw) c n").contiguous()
    bias = weight.new_zeros(count) if bias is None else bias
    present = rearrange(x, "b c t h w -> b t h w c").contiguous()
    before = present if past is None else rearrange(past, "b c t h w -> b t h w c").contiguous()
    b, frames, height, width, _ = present.shape
    result = x.new_empty(b, frames, height * scale, width * scale, count)
    block_c = min(64 if c % 64 == 0 else 32, max(16, triton.next_power_of_2(c)))
    block_n = min(OUTPUTS, max(16, triton.next_power_of_2(count)))
    tiles = triton.cdiv(height * scale, ROWS) * triton.cdiv(width * scale, COLUMNS)
    grid = (triton.cdiv(count, block_n) * tiles, frames)
    sizes = (height, width, count, scale, c, kt, kh, kw, ROWS, COLUMNS, block_n, block_c)
    with on_its_device(x):
        for sample in range(b):
            convolve_kernel[grid](
                before[sample], present[sample], taps, bias, result[sample], *sizes, num_warps=4, num_stages=3
            )
    return rearrange(result, "b t h w n -> b n t h w")


# Norms ---------------------------------------------------------------------------------------------------------------


@triton.jit
def norm_silu_kernel(
    pixels,
    gamma,
    result,
    count,
    root,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK rows of channels (count c)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, BLOCK_C)
    inside = (row < count)[:, None] & (channel < C)[None, :]
    place = row[:, None] * C + channel[None, :]
    x = tl.load(pixels + place, mask=inside, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)
    scale = tl.load(gamma + channel, mask=channel < C, other=0.0).to(tl.float32) * root
    y = x / length[:, None] * scale[None, :]
    tl.store(result + place, (y * tl.sigmoid(y)).to(result.dtype.element_ty), mask=inside)


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    """See `kernels.norm_silu`."""
    pixels = rearrange(x, "b c t h w -> b t h w c").contiguous()
    result = torch.empty_like(pixels)
    c = pixels.shape[-1]
    count, block = pixels.numel() // c, max(1, 4096 // triton.next_power_of_2(c))
    with on_its_device(x):
        norm_silu_kernel[(triton.cdiv(count, block),)](
            pixels, gamma, result, count, c**0.5, c, triton.next_power_of_2(c), block, num_warps=8
        )
    return rearrange(result, "b t h w c -> b c t h w")


@triton.jit
def norm_rope_kernel(  # noqa: PLR0913, PLR0917
    rows,  # (b*s, 2*count)
    weight,  # (2*count)
    table,  # (positions, pairs, 2)
    result,
    positions,
    eps,
    COUNT: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A token: its norm, then each of its pairs turned by the angle of its place within a head."""
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    both = pair[:, None] * 2 + tl.arange(0, 2)[None, :]
    inside = (pair < COUNT)[:, None] & (both >= 0)
    x = tl.load(rows + row * (2 * COUNT) + both, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(tl.sum(x * x, 1), 0) / (2 * COUNT) + eps)
    x = x * inverse * tl.load(weight + both, mask=inside, other=0.0).to(tl.float32)
    angle = table + row % positions * (2 * PAIRS) + pair[:, None] % PAIRS * 2 + tl.arange(0, 2)[None, :]
    cos, sin = tl.split(tl.load(angle, mask=inside, other=0.0))
    real, imaginary = tl.split(x)
    turned = tl.join(real * cos - imaginary * sin, real * sin + imaginary * cos)
    tl.store(result + row * (2 * COUNT) + both, turned.to(result.dtype.element_ty), mask=inside)


def norm_rope(x: Tensor, weight: Tensor, eps: float, table: Tensor, heads: int) -> Tensor:
    """See `kernels.norm_rope`."""
    b, s, width = x.shape
    rows, pairs = x.contiguous(), width // 2
    result = torch.empty_like(rows)
    positions = b * s if table.ndim == 4 and len(table) > 1 else s  # a table for every sample, or one for all
    with on_its_device(x):
        norm_rope_kernel[(b * s,)](
            rows,
            weight,
            table.contiguous(),
            result,
            positions,
            eps,
            pairs,
            pairs // heads,
            triton.next_power_of_2(pairs),
            num_warps=8,
        )
    return result.view(b, s, heads, width // heads)
