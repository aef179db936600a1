"""Quantised weights of safetensors files in memory: as they are stored, and made dense in float32.

A dense weight is number * scale; where the inputs of a layer were rotated before its weight was rounded (`convrot`),
the product is rotated back; where a layer multiplies its input by factors first (`pre_quant_scale`, as of AWQ), these
are multiplied into the columns. Formulas and layouts are those of comfy-kitchen 0.2.31's plain torch code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from omniavatar.checkpoints.formats.base import PackedTensor
from omniavatar.checkpoints.formats.quantised import Packing, scale_grid
from omniavatar.errors import CheckpointError, shortened

TILE = (128, 4)
"""Rows and columns of a tile of swizzled scales."""


class Quantised(PackedTensor):
    """What all have in common: numbers in float32, then rotation, factors of inputs, and the true shape.

    stored: the shape before padding is cut off. rotated: how many inputs were rotated together; 0: none.
    """

    def __init__(self, shape: tuple[int, ...], parts: Mapping[str, Tensor], rotated: int = 0) -> None:
        super().__init__(shape, parts)
        self.rotated = rotated

    def numbers(self, device: torch.device) -> Tensor:
        """The weight before rotation and factors (rows columns) float32, padded."""
        raise NotImplementedError

    def dense(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        """See `PackedTensor.dense`; with the factors of inputs, so that it is the weight of the layer as a whole."""
        place = self.parts["weight"].device if device is None else torch.device(device)
        weight = self.numbers(place)
        if self.rotated:
            weight = (weight.unflatten(1, (-1, self.rotated)) @ rotation(self.rotated, place)).flatten(1)
        if weight.shape != self.shape:
            weight = weight[tuple(slice(side) for side in self.shape)] if weight.ndim == 2 else weight
        if "pre_quant_scale" in self.parts:
            weight = weight * self.parts["pre_quant_scale"].to(place, torch.float32).flatten()
        return weight.reshape(self.shape).to(dtype or torch.float32)

    def cut(self, shape: tuple[int, ...]) -> Self:
        """See `PackedTensor.cut`."""
        if len(shape) != len(self.shape) or any(side > stored for side, stored in zip(shape, self.shape, strict=True)):
            return super().cut(shape)
        other = self.with_parts(self.parts)
        other.shape = tuple(shape)
        return other

    def part(self, name: str, device: torch.device) -> Tensor:
        """A part in float32."""
        return self.parts[name].to(device).float()


class Scaled(Quantised):
    """Numbers of 8 bits times a scale: one, one for each output, or one for each block; without one they are as is.

    is_weight_only: the input of the layer must not be rounded to 8 bits.
    """

    def __init__(
        self, shape: tuple[int, ...], parts: Mapping[str, Tensor], rotated: int = 0, is_weight_only: bool = False
    ) -> None:
        super().__init__(shape, parts, rotated)
        self.is_weight_only = is_weight_only

    def as_fp8(self) -> tuple[Tensor, Tensor | None] | None:
        """See `PackedTensor.as_fp8`; not with scales of blocks, rotated inputs or factors of these."""
        weight, scale = self.parts["weight"], self.parts.get("scale")
        is_plain = not self.rotated and "pre_quant_scale" not in self.parts and weight.ndim == 2
        grid = (1, 1) if scale is None else scale_grid(tuple(scale.shape), self.shape)
        if not is_plain or weight.dtype not in FP8 or grid not in ((1, 1), (self.shape[0], 1)):
            return None
        return weight, None if scale is None else scale.float().reshape(-1, 1)

    def numbers(self, device: torch.device) -> Tensor:
        weight = self.part("weight", device)
        if "scale" not in self.parts:
            return weight
        return scaled(weight, self.part("scale", device))


class Int4(Quantised):
    """Signed numbers of 4 bits, the first of two in the low half of a byte, times a scale."""

    def numbers(self, device: torch.device) -> Tensor:
        low, high = halves(self.parts["weight"].to(device))
        signed = torch.stack((low, high), dim=-1).flatten(1).view(torch.int8)
        return scaled(((signed ^ 8) - 8).float(), self.part("scale", device))


class Asym4(Quantised):
    """Unsigned numbers of 4 bits, looked up or less 8, times the scale of a group, rounded, times that of an output."""

    def numbers(self, device: torch.device) -> Tensor:
        low, high = halves(self.parts["weight"].to(device))
        unsigned = torch.stack((low, high), dim=-1).flatten(1)
        if "codebook" in self.parts:
            codebook = self.part("codebook", device).flatten()
            weight = codebook.index_select(0, unsigned.flatten().int()).view(unsigned.shape)
        else:
            weight = unsigned.float() - 8
        groups = self.part("groups", device).view(len(weight), -1)
        whole = scaled(weight, groups).round_().clamp_(-127, 127)
        return whole * self.part("channel", device).view(-1, 1)


class MxFp8(Quantised):
    """fp8 with a power of two (e8m0: 2^(e - 127)) for every 32 inputs, swizzled."""

    def numbers(self, device: torch.device) -> Tensor:
        weight = self.part("weight", device)
        exponents = self.parts["scale"].to(device).view(torch.uint8)
        scales = unswizzled(exponents, len(weight), weight.shape[1] // 32).float()
        return scaled(weight, torch.exp2(scales - 127))


class NvFp4(Quantised):
    """E2M1 numbers with an fp8 scale for every 16 inputs, swizzled, and one for all.

    low_first: whether the first of two numbers lies in the low half of their byte (LightX2V) or in the high one.
    """

    def __init__(self, shape: tuple[int, ...], parts: Mapping[str, Tensor], low_first: bool) -> None:
        super().__init__(shape, parts)
        self.low_first = low_first

    def numbers(self, device: torch.device) -> Tensor:
        low, high = halves(self.parts["weight"].to(device))
        pair = (low, high) if self.low_first else (high, low)
        weight = e2m1(torch.stack(pair, dim=-1).flatten(1))
        scales = unswizzled(self.parts["scale"].to(device), len(weight), weight.shape[1] // 16).float()
        return scaled(weight, scales * self._whole(device))

    def _whole(self, device: torch.device) -> Tensor:
        """The scale of all numbers."""
        if "weight_scale_2" in self.parts:
            return self.part("weight_scale_2", device).flatten()
        if "weight_global_scale" in self.parts:
            return 1 / self.part("weight_global_scale", device).flatten()
        return (self.part("alpha", device) * self.part("input_global_scale", device)).flatten()


FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
KINDS: Mapping[str, type[Quantised]] = {
    "scaled": Scaled,
    "int4": Int4,
    "asym4": Asym4,
    "mxfp8": MxFp8,
    "nvfp4": NvFp4,
}
"""By `Packing.kind`."""
NUMBERS = ("weight", "codebook", "pre_quant_scale")
"""Parts that are no scales."""


def packed(file: Path, packing: Packing, parts: Mapping[str, Tensor], *, is_read: bool = True) -> Quantised:
    """A packed weight from its tensors.

    is_read: whether the values may be looked at: then CheckpointError is raised for scales that are no finite positive
    numbers.
    """
    for part, tensor in parts.items() if is_read else ():
        fault = fault_of(part, tensor)
        if fault:
            name = packing.parts[part]
            raise CheckpointError(f"{file}: '{shortened(name)}' {fault}; download it again, or take another file")
    return KINDS[packing.kind](packing.info.shape, parts, **packing.settings)


def fault_of(part: str, tensor: Tensor) -> str:
    """What is wrong with the values of a part, in a few words; nothing if they can be used."""
    if part == "weight" or not tensor.numel():
        return ""
    if part == "scale" and tensor.dtype in (torch.uint8, torch.float8_e8m0fnu):
        return "has a scale that is no number" if bool((tensor.view(torch.uint8) == 255).any()) else ""
    values = tensor.float()
    if not bool(values.isfinite().all()):
        return "holds a scale that is not finite" if part not in NUMBERS else "holds numbers that are not finite"
    if part not in NUMBERS and (bool((values < 0).any()) or not bool(values.any())):
        return "holds a scale that is zero or negative"
    return ""


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """A weight (rows ...) times scales for equal shares of its sides (see `scale_grid`), in place."""
    grid = scale_grid(tuple(scale.shape), tuple(weight.shape))
    assert grid is not None, "checked with the header"
    rows, columns = grid
    if rows == columns == 1:
        return weight.mul_(scale.flatten())
    shares = weight.view(rows, weight.shape[0] // rows, columns, -1)
    shares.mul_(scale.reshape(rows, 1, columns, 1))
    return weight


def halves(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high four bits of bytes, uint8."""
    bytes_ = weight.view(torch.uint8)
    return bytes_ & 15, bytes_ >> 4


def e2m1(numbers: Tensor) -> Tensor:
    """Numbers of a sign, two bits of exponent and one of mantissa (OCP Microscaling 1.0, section 5.3.3) in float32.

    Put in the place of these bits in a half-precision number, they mean 2^-14 of what they are.
    """
    bits = numbers.short()
    half: Tensor = ((bits & 8) << 12 | (bits & 7) << 9).view(torch.float16)
    return half.float() * 16384


def unswizzled(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Scales (rows columns) from the tiles of the tensor cores: row r and column c of a tile of 128 x 4 lie at
    (r mod 32) * 16 + (r div 32) * 4 + c.
    """
    down, across = -(-rows // TILE[0]), -(-columns // TILE[1])
    tiles = scales.reshape(down, across, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(down * TILE[0], across * TILE[1])[:rows, :columns]


@lru_cache(maxsize=16)
def rotation(group: int, device: torch.device) -> Tensor:
    """H / sqrt(group) with H the Kronecker power of a regular Hadamard matrix (4 4): symmetric and its own inverse."""
    step = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    matrix = torch.ones(1, 1)
    while len(matrix) < group:
        matrix = torch.kron(matrix, step)
    return (matrix / math.sqrt(group)).to(device)
