"""Linear layers in 8 bits: weights as float8_e4m3fn (Micikevicius et al. 2022, arXiv:2209.05433) and scales.

A weight is stored as `round(weight / scale)`, the scale being what brings the largest value of its row, or of the whole
matrix, to the largest number of the format, 448. The format has three bits behind the point: a stored number is off by
up to 1/16 of its size, or by 2^-10 of a scale if it is smaller than 2^-6 of one.

    Fp8Linear.of(linear, "storage", "row")(x)
    Conversions([Fp8Blocks("compute", "row")]).convert(network)      # attention and feed-forward of its blocks
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniavatar.models.conversion import Conversion, RawFp8, Weight, is_fp8
from omniavatar.models.packed import PackedLayer, PackedLinear, is_linear
from omniavatar.models.packed_tensor import PackedTensor

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
MULTIPLE = 16
"""Of which the sides of a matrix must be multiples for tensor cores."""
PARTS = ("self_attn", "cross_attn", "attn", "ffn")
"""The parts of a block whose linear layers are meant: neither modulation nor what leads into or out of the blocks."""

Mode = Literal["compute", "storage"]
Scaling = Literal["row", "tensor"]


def scale_of(x: Tensor, scaling: Scaling) -> Tensor:
    """The scale of a matrix (m k), float32: (m 1) of its rows, or (1 1) of all of it."""
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1 if scaling == "row" else (0, 1), keepdim=True)
    scale: Tensor = (largest.float() / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return scale


def quantized(x: Tensor, scale: Tensor) -> Tensor:
    """A matrix (m k) in units of its own scale, float8_e4m3fn, by way of float32."""
    return (x / scale).to(E4M3)


class Fp8Weight(PackedTensor):
    """Numbers (out in) in an fp8 type times a scale (out 1) or (1 1), float32."""

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor, scaling: Scaling) -> Fp8Weight:
        """A weight (out in), rounded where it is."""
        scale = scale_of(weight, scaling)
        return cls(tuple(weight.shape), {"weight": quantized(weight, scale), "scale": scale})

    def as_fp8(self) -> tuple[Tensor, Tensor]:
        return self.parts["weight"], self.parts["scale"]

    def dense(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        weight, scale = (part.to(device) for part in self.as_fp8())
        return (weight.float() * scale).to(dtype or torch.float32)


class Fp8Linear(PackedLayer):
    """A linear layer whose weight has 8 bits.

    compute: the input is scaled and rounded to 8 bits as well, row by row (token by token) or as a whole, and the
    matrices are multiplied by the tensor cores of Hopper or Ada. Elsewhere, as on the CPU, the same rounded numbers are
    multiplied in float32, so that the error is the same and nothing is gained. storage: the weight is brought back to
    the type of the input for each use, which saves memory only.
    """

    weight: nn.Parameter
    scale: nn.Parameter

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, mode: Mode, scaling: Scaling) -> None:
        super().__init__()
        self.mode, self.scaling = mode, scaling
        self._take(Fp8Weight(tuple(weight.shape), {"weight": weight, "scale": scale}), bias)

    @classmethod
    def of(cls, linear: nn.Linear, mode: Mode, scaling: Scaling) -> Fp8Linear:
        """The layer in 8 bits."""
        packed = Fp8Weight.of(linear.weight, scaling)
        return cls(*packed.as_fp8(), linear.bias, mode, scaling)

    @staticmethod
    def kept(packed: PackedTensor) -> dict[str, Tensor]:
        return dict(packed.parts)

    def packed(self) -> Fp8Weight:
        return Fp8Weight((self.out_features, self.in_features), {"weight": self.weight, "scale": self.scale})

    def forward(self, x: Tensor) -> Tensor:
        """(... in_features) -> (... out_features)."""
        if self.mode == "storage":
            return functional.linear(x, (self.weight.to(x.dtype) * self.scale).to(x.dtype), self.bias)
        rows = x.reshape(-1, self.in_features)
        scale = scale_of(rows, self.scaling)
        product = self._product(quantized(rows, scale), scale, x.dtype)
        return product.view(*x.shape[:-1], self.out_features)

    def _product(self, rows: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Rounded rows (m in) with their scale times the weight, plus the bias: (m out) in `dtype`."""
        fits = self.in_features % MULTIPLE == 0 and self.out_features % MULTIPLE == 0
        if rows.is_cuda and fits and dtype == torch.bfloat16:
            return torch._scaled_mm(
                rows,
                self.weight.t(),
                scale_a=scale if self.scaling == "row" else scale.squeeze(),
                scale_b=self.scale.t() if self.scaling == "row" else self.scale.squeeze(),
                bias=self.bias,
                out_dtype=dtype,
                use_fast_accum=True,
            )
        product = functional.linear(rows.float(), self.weight.float()) * scale * self.scale.flatten()
        return (product if self.bias is None else product + self.bias.float()).to(dtype)


class Fp8Blocks(Conversion):
    """The linear layers of attention and feed-forward in a network's blocks, in 8 bits.

    A weight that is fp8 with one scale, or one for every output, is taken as it is; of other packed weights, which have
    8 bits or fewer already and would only lose, nothing is made.
    """

    def __init__(self, mode: Mode, scaling: Scaling) -> None:
        self.mode, self.scaling = mode, scaling
        self.names: frozenset[str] = frozenset()

    def begin(self, network: nn.Module) -> None:
        found = [
            f"blocks.{index}.{name}.weight"
            for index, block in enumerate(getattr(network, "blocks", ()))
            for name, layer in block.named_modules()
            if is_linear(layer) and name.partition(".")[0] in PARTS
        ]
        self.names = frozenset(found)

    def stores(self, name: str) -> bool:
        return name in self.names

    def store(self, name: str, weight: Weight) -> PackedTensor:
        if isinstance(weight, Tensor):
            if not is_fp8(weight):
                return Fp8Weight.of(weight, self.scaling)
            weight = RawFp8.of(weight)
        given = weight.as_fp8()
        if given is None:
            return weight
        numbers, scale = given
        scale = torch.ones(1, 1, device=numbers.device) if scale is None else scale.float().reshape(-1, 1)
        if self.scaling == "row" and len(scale) == 1:
            scale = scale.expand(len(numbers), 1).contiguous()
        taken = Fp8Weight(weight.shape, {"weight": numbers, "scale": scale})
        taken.is_weight_only = weight.is_weight_only
        return taken

    def layer(self, name: str, packed: PackedTensor, bias: Tensor | None) -> PackedLayer:
        """See `Conversion.layer`. Inputs are not rounded for e5m2 numbers, nor where the file says so."""
        if not isinstance(packed, Fp8Weight):
            return PackedLinear(packed, bias)
        weight, scale = packed.as_fp8()
        mode: Mode = "storage" if packed.is_weight_only or weight.dtype != E4M3 else self.mode
        return Fp8Linear(weight, scale, bias, mode, "tensor" if self.scaling == "tensor" and len(scale) == 1 else "row")
