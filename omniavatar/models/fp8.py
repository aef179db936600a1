"""Linear layers in 8 bits: weights as float8_e4m3fn (Micikevicius et al. 2022, arXiv:2209.05433) and scales.

A weight is stored as `round(weight / scale)`, the scale being what brings the largest value of its row, or of the whole
matrix, to the largest number of the format, 448. The format has three bits behind the point: a stored number is off by
up to 1/16 of its size, or by 2^-10 of a scale if it is smaller than 2^-6 of one.

    replace_linears(block, "compute")           # attention and feed-forward, in place
    Fp8Linear.of(linear, "storage", "row")(x)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

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


class Fp8Linear(nn.Module):
    """A linear layer whose weight has 8 bits.

    compute: the input is scaled and rounded to 8 bits as well, row by row (token by token) or as a whole, and the
    matrices are multiplied by the tensor cores of Hopper or Ada. Elsewhere, as on the CPU, the same rounded numbers are
    multiplied in float32, so that the error is the same and nothing is gained. storage: the weight is brought back to
    the type of the input for each use, which saves memory only.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, mode: Mode, scaling: Scaling) -> None:
        super().__init__()
        self.mode, self.scaling = mode, scaling
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, mode: Mode, scaling: Scaling, device: torch.device | None = None) -> Fp8Linear:
        """The layer in 8 bits, where it was; rounded on `device`."""
        weight = linear.weight.to(device)
        scale = scale_of(weight, scaling)
        place = linear.weight.device
        return cls(quantized(weight, scale).to(place), scale.to(place), linear.bias, mode, scaling)

    def forward(self, x: Tensor) -> Tensor:
        """(... in_features) -> (... out_features)."""
        if self.mode == "storage":
            return functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)
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


def replace_linears(block: nn.Module, mode: Mode, scaling: Scaling = "row", device: torch.device | None = None) -> int:
    """Put 8-bit layers in place of a block's linear layers of attention and feed-forward; how many.

    device: where to round, if the weights lie elsewhere.
    """
    found = [
        (name, layer)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and name.partition(".")[0] in PARTS
    ]
    for name, layer in found:
        block.set_submodule(name, Fp8Linear.of(layer, mode, scaling, device))
    return len(found)
