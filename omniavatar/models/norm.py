"""Root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467) as Wan and T5 compute it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis: in float32, cast back, then times the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim) in the dtype of x."""
        return functional.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight
