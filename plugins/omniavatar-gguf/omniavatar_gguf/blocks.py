"""From the blocks of a GGUF tensor to numbers, in torch: float32 arithmetic on whole tensors, on any device.

Each block type packs 32 to 256 numbers of a row with their scales. The layouts are those of ggml
(github.com/ggml-org/ggml, src/ggml-quants.c); each function does the operations of `gguf.quants` in the same order, so
that the results are equal bit by bit. In the functions below n is the number of blocks; `blocks` is (n bytes) uint8,
and what they return is (n numbers) float32, of any inner shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

Type: TypeAlias = GGMLQuantizationType
PLAIN = {
    Type.F32: torch.float32,
    Type.F16: torch.float16,
    Type.BF16: torch.bfloat16,
    Type.F64: torch.float64,
}
"""Types that torch has itself."""
SLAB_CPU, SLAB = 2**19, 2**27
"""Numbers made at once: on a CPU what fits into its cache, elsewhere what bounds the memory in between."""


def block_size(kind: Type) -> tuple[int, int]:
    """How many numbers and how many bytes a block has."""
    numbers, nbytes = GGML_QUANT_SIZES[kind]
    return numbers, nbytes


def dequantise(blocks: Tensor, kind: Type, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers of blocks (n bytes) uint8, one after the other; float32 arithmetic, rounded once to `dtype`."""
    unpack = UNPACK[kind]
    numbers, _ = block_size(kind)
    step = max(1, (SLAB_CPU if blocks.device.type == "cpu" else SLAB) // numbers)
    if len(blocks) <= step:
        return unpack(blocks).to(dtype).reshape(-1)
    result = torch.empty(len(blocks), numbers, dtype=dtype, device=blocks.device)
    for start in range(0, len(blocks), step):
        part = unpack(blocks[start : start + step])
        result[start : start + step] = part.reshape(len(part), numbers)
    return result.reshape(-1)


# --- parts of blocks


def split(blocks: Tensor, *sizes: int) -> Sequence[Tensor]:
    """Blocks cut into parts of so many bytes; the last part is what remains."""
    parts: Sequence[Tensor] = blocks.split([*sizes, blocks.shape[1] - sum(sizes)], dim=1)
    return parts


def half(part: Tensor) -> Tensor:
    """Pairs of bytes as float16 numbers, in float32 (n k)."""
    return part.contiguous().view(torch.float16).float()


def words(part: Tensor) -> Tensor:
    """Pairs of bytes as unsigned 16-bit numbers, in int32 (n k)."""
    return part.contiguous().view(torch.int16).int() & 0xFFFF


def shifted(part: Tensor, step: int, count: int) -> Tensor:
    """Numbers shifted right by 0, step, 2 step, ...: (...) -> (... count)."""
    return part[..., None] >> torch.arange(0, step * count, step, dtype=part.dtype, device=part.device)


def fields(part: Tensor, bits: int, run: int) -> Tensor:
    """Bytes as fields of so many bits, the low ones of a run of bytes first: (n bytes) -> (n bytes/run 8/bits run)."""
    runs = part.reshape(len(part), -1, 1, run)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=part.device)[:, None]
    result: Tensor = (runs >> shifts) & (2**bits - 1)
    return result


def nibbles(part: Tensor) -> Tensor:
    """The low halves of all bytes, then their high halves: (n bytes) -> (n 2*bytes)."""
    return torch.cat([part & 15, part >> 4], dim=1)


def bits(part: Tensor) -> Tensor:
    """The bits of bytes, the lowest first: (n bytes) -> (n 8*bytes)."""
    return (shifted(part, 1, 8) & 1).flatten(1)


def signs(part: Tensor) -> Tensor:
    """Bits as factors: 1 for a bit that is 0, -1 for one that is 1."""
    return 1.0 - 2.0 * part.float()


@cache
def table(name: str, device: torch.device) -> Tensor:
    """A table of `gguf.quants`: the numbers of a grid (k 4 or 8), or of 4 bits (16 1), float32."""
    kind = getattr(gguf.quants, name)
    if hasattr(kind, "kvalues"):
        values = np.array(kind.kvalues, dtype=np.float32)[:, None]
    else:
        kind.init_grid()
        values = kind.grid.reshape(kind.grid_shape)
    return torch.tensor(values, device=device)


@cache
def sign_table(device: torch.device) -> Tensor:
    """Eight signs for each of 128 numbers (128 8), float32: seven are its bits, the last one makes them even."""
    codes = torch.frombuffer(bytearray(gguf.quants.IQ2_XXS.ksigns), dtype=torch.uint8)
    return signs(bits(codes[:, None])).to(device)


@cache
def scale_table(device: torch.device) -> Tensor:
    """The scale (256 1) for each byte in NVFP4."""
    values = gguf.quants.NVFP4.ue4m3_to_fp32(np.arange(256, dtype=np.uint8))
    return torch.tensor(values.astype(np.float32)[:, None], device=device)


def looked_up(numbers: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table by their numbers: (n k) -> (n k c)."""
    return torch.nn.functional.embedding(numbers.int(), rows)


# --- 32 numbers a block


def q4_0(blocks: Tensor) -> Tensor:
    d, qs = split(blocks, 2)
    return half(d) * (nibbles(qs).view(torch.int8) - 8)


def q4_1(blocks: Tensor) -> Tensor:
    d, m, qs = split(blocks, 2, 2)
    return half(d) * nibbles(qs) + half(m)


def q5_0(blocks: Tensor) -> Tensor:
    d, qh, qs = split(blocks, 2, 4)
    return half(d) * ((nibbles(qs) | bits(qh) << 4).view(torch.int8) - 16)


def q5_1(blocks: Tensor) -> Tensor:
    d, m, qh, qs = split(blocks, 2, 2, 4)
    return half(d) * (nibbles(qs) | bits(qh) << 4) + half(m)


def q8_0(blocks: Tensor) -> Tensor:
    d, qs = split(blocks, 2)
    return half(d) * qs.view(torch.int8)


def iq4_nl(blocks: Tensor) -> Tensor:
    d, qs = split(blocks, 2)
    return half(d) * looked_up(nibbles(qs), table("IQ4_NL", blocks.device)).flatten(1)


def mxfp4(blocks: Tensor) -> Tensor:
    e, qs = split(blocks, 1)
    exponent = e.int()
    scale = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=2), (exponent - 1) << 23)
    return scale.view(torch.float32) * looked_up(nibbles(qs), table("MXFP4", blocks.device)).flatten(1)


# --- 64 numbers a block


def nvfp4(blocks: Tensor) -> Tensor:
    d, qs = split(blocks, 4)
    numbers = nibbles(qs.reshape(-1, 8)).reshape(len(blocks), 4, 16)
    values = looked_up(numbers, table("NVFP4", blocks.device)).squeeze(-1)
    return looked_up(d, scale_table(blocks.device)) * values


# --- 256 numbers a block


def q2_k(blocks: Tensor) -> Tensor:
    scales, qs, d, dmin = split(blocks, 16, 64, 2)
    dl, ml = half(d) * (scales & 15), half(dmin) * (scales >> 4)
    q = fields(qs, 2, 32).reshape(-1, 16, 16)
    return dl[..., None] * q - ml[..., None]


def q3_k(blocks: Tensor) -> Tensor:
    hmask, qs, low, high, d = split(blocks, 32, 64, 8, 4)
    scales = (nibbles(low) | fields(high, 2, 4).flatten(1) << 4).view(torch.int8) - 32
    q = fields(qs, 2, 32).flatten(1) | fields(hmask, 1, 32).flatten(1) << 2
    return (half(d) * scales)[..., None] * (q.view(torch.int8) - 4).reshape(-1, 16, 16)


def scales_and_minima(part: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of 6 bits (n 8) from 12 bytes, as Q4_K and Q5_K have them."""
    d, m, rest = part.split(4, dim=1)
    scales = torch.cat([d & 63, (rest & 15) | ((d >> 2) & 48)], dim=1)
    minima = torch.cat([m & 63, (rest >> 4) | ((m >> 2) & 48)], dim=1)
    return scales, minima


def q4_k(blocks: Tensor) -> Tensor:
    d, dmin, packed, qs = split(blocks, 2, 2, 12)
    scales, minima = scales_and_minima(packed)
    q = fields(qs, 4, 32).reshape(-1, 8, 32)
    return (half(d) * scales)[..., None] * q - (half(dmin) * minima)[..., None]


def q5_k(blocks: Tensor) -> Tensor:
    d, dmin, packed, qh, qs = split(blocks, 2, 2, 12, 32)
    scales, minima = scales_and_minima(packed)
    q = (fields(qs, 4, 32).flatten(1) | fields(qh, 1, 32).flatten(1) << 4).reshape(-1, 8, 32)
    return (half(d) * scales)[..., None] * q - (half(dmin) * minima)[..., None]


def q6_k(blocks: Tensor) -> Tensor:
    low, high, scales, d = split(blocks, 128, 64, 16)
    q = (fields(low, 4, 64).flatten(1) | fields(high, 2, 32).flatten(1) << 4).view(torch.int8) - 32
    return (half(d) * scales.view(torch.int8))[..., None] * q.reshape(-1, 16, 16)


def iq4_xs(blocks: Tensor) -> Tensor:
    d, high, low, qs = split(blocks, 2, 2, 4)
    upper = (shifted(words(high), 2, 8) & 3).flatten(1)
    lower = (shifted(low, 4, 2) & 15).flatten(1)
    scale = half(d) * ((lower | upper << 4) - 32)
    values = looked_up(fields(qs, 4, 16).reshape(-1, 8, 32), table("IQ4_NL", blocks.device)).squeeze(-1)
    return scale[..., None] * values


def tq1_0(blocks: Tensor) -> Tensor:
    first, second, third, d = split(blocks, 32, 16, 4)
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=blocks.device)[:, None]
    trits = [first[:, None] * powers, second[:, None] * powers, third[:, None] * powers[:4]]  # bytes that wrap around
    q = torch.cat([part.flatten(1) for part in trits], dim=1)
    return half(d) * ((q.int() * 3 >> 8) - 1)


def tq2_0(blocks: Tensor) -> Tensor:
    qs, d = split(blocks, 64)
    return half(d) * (fields(qs, 2, 32).flatten(1).view(torch.int8) - 1)


def grid_rows(numbers: Tensor, name: str, scale: Tensor, factors: Tensor) -> Tensor:
    """Rows of a grid times a scale (n g) and signs: numbers (n k) -> (n g k/g c)."""
    rows = looked_up(numbers, table(name, numbers.device))
    groups = scale.shape[1]
    rows = rows.reshape(len(rows), groups, -1)
    return scale[..., None] * rows * factors.reshape(rows.shape)


def quarters(scales: Tensor) -> Tensor:
    """0.5 + the 4-bit scales of each byte, low half first (n 2*bytes), float32."""
    return 0.5 + (shifted(scales, 4, 2) & 15).flatten(1)


def coded_signs(part: Tensor) -> tuple[Tensor, Tensor]:
    """From 32-bit words (n 4*k bytes): their upper 4 bits (n k) and the signs of their four 7-bit numbers (n k 32)."""
    words32 = part.contiguous().view(torch.int32)
    codes = shifted(words32, 7, 4) & 127
    return (words32 >> 28) & 15, looked_up(codes.flatten(1), sign_table(part.device)).reshape(*words32.shape, 32)


def iq2_xxs(blocks: Tensor) -> Tensor:
    d, rest = split(blocks, 2)
    pairs = rest.reshape(len(rest), 8, 2, 4)
    scale, factors = coded_signs(pairs[:, :, 1].flatten(1))
    return grid_rows(pairs[:, :, 0].flatten(1), "IQ2_XXS", half(d) * (0.5 + scale) * 0.25, factors)


def iq2_xs(blocks: Tensor) -> Tensor:
    d, qs, scales = split(blocks, 2, 64)
    codes = words(qs)
    factors = looked_up(codes >> 9, sign_table(blocks.device))
    return grid_rows(codes & 511, "IQ2_XS", half(d) * quarters(scales) * 0.25, factors)


def iq2_s(blocks: Tensor) -> Tensor:
    d, qs, sign, qh, scales = split(blocks, 2, 32, 32, 8)
    numbers = qs.int() | (shifted(qh, 2, 4) & 3).flatten(1).int() << 8
    return grid_rows(numbers, "IQ2_S", half(d) * quarters(scales) * 0.25, signs(bits(sign)))


def iq3_xxs(blocks: Tensor) -> Tensor:
    d, qs, rest = split(blocks, 2, 64)
    scale, factors = coded_signs(rest)
    return grid_rows(qs, "IQ3_XXS", half(d) * (0.5 + scale) * 0.5, factors)


def iq3_s(blocks: Tensor) -> Tensor:
    d, qs, qh, sign, scales = split(blocks, 2, 64, 8, 32)
    numbers = qs.int() | bits(qh).int() << 8
    scale = half(d) * (1 + 2 * (shifted(scales, 4, 2) & 15).flatten(1))
    return grid_rows(numbers, "IQ3_S", scale, signs(bits(sign)))


DELTA = 0.125
"""By how much the numbers of IQ1 are off the grid."""


def iq1_s(blocks: Tensor) -> Tensor:
    d, qs, high = split(blocks, 2, 32)
    qh = words(high)
    scale = half(d) * (2 * (qh >> 12 & 7) + 1)
    delta = torch.where(qh & 0x8000 == 0, DELTA, -DELTA)
    numbers = qs.int() | (shifted(qh, 3, 4) & 7).flatten(1) << 8
    rows = looked_up(numbers, table("IQ1_S", blocks.device)).reshape(len(blocks), 8, 32)
    return scale[..., None] * (rows + delta[..., None])


def iq1_m(blocks: Tensor) -> Tensor:
    qs, high, packed = split(blocks, 32, 16)
    parts = words(packed)
    pieces = (parts & 0xF000) >> torch.arange(12, -1, -4, dtype=torch.int32, device=blocks.device)
    d = half(pieces.sum(1, keepdim=True).to(torch.int16).view(torch.uint8))
    scale = d * (2 * (shifted(parts, 3, 4) & 7).flatten(1) + 1)
    qh = shifted(high, 4, 2).flatten(1)
    delta = torch.where(qh & 8 == 0, DELTA, -DELTA)
    numbers = qs.int() | (qh & 7).int() << 8
    rows = looked_up(numbers, table("IQ1_S", blocks.device))
    return scale.repeat_interleave(2, dim=1)[..., None] * (rows + delta[..., None])


UNPACK: dict[Type, Callable[[Tensor], Tensor]] = {
    Type.Q4_0: q4_0,
    Type.Q4_1: q4_1,
    Type.Q5_0: q5_0,
    Type.Q5_1: q5_1,
    Type.Q8_0: q8_0,
    Type.IQ4_NL: iq4_nl,
    Type.MXFP4: mxfp4,
    Type.NVFP4: nvfp4,
    Type.Q2_K: q2_k,
    Type.Q3_K: q3_k,
    Type.Q4_K: q4_k,
    Type.Q5_K: q5_k,
    Type.Q6_K: q6_k,
    Type.IQ4_XS: iq4_xs,
    Type.TQ1_0: tq1_0,
    Type.TQ2_0: tq2_0,
    Type.IQ2_XXS: iq2_xxs,
    Type.IQ2_XS: iq2_xs,
    Type.IQ2_S: iq2_s,
    Type.IQ3_XXS: iq3_xxs,
    Type.IQ3_S: iq3_s,
    Type.IQ1_S: iq1_s,
    Type.IQ1_M: iq1_m,
}
"""How the blocks of each packed type become numbers."""
