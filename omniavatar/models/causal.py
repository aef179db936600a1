"""Convolutions over time that see no future."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional


class CausalConv1d(nn.Module):
    """A convolution over time with kernel 3 that sees the present and two steps of the past; the first one repeats."""

    def __init__(self, in_dim: int, out_dim: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_dim, out_dim, kernel_size=3, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(b t c) -> (b (t-1)//stride+1 c')."""
        padded = functional.pad(rearrange(x, "b t c -> b c t"), (2, 0), mode="replicate")
        convolved: Tensor = self.conv(padded)
        return rearrange(convolved, "b c t -> b t c")
