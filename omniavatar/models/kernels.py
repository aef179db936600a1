"""Where kernels of our own take the place of several of torch's: Hopper GPUs, half precision, no gradient.

Each function computes what the layers named in its docstring compute, in fewer passes over memory: sums, norms and
products in float32, rounded once at the end, to the type of x. Ask `fit` first; the kernels are in `triton_kernels`.
Pictures are (b c t h w), best in the memory format channels_last_3d, which is that of the results.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF_PRECISION = (torch.float16, torch.bfloat16)


def fit(x: Tensor) -> bool:
    """Whether the kernels can be used for this tensor, on whichever device it lies."""
    if not x.is_cuda or x.dtype not in HALF_PRECISION or torch.is_grad_enabled():
        return False
    from omniavatar.models.gpu import serves  # imports torch's compiler, which takes two seconds

    return bool(serves(x.device.index))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None = None, scale: int = 1) -> Tensor:
    """A convolution with stride 1, `nn.Conv3d`: x (b c t h w) -> (b n t h w), zeros around the pictures.

    weight: (n c kt kh kw), kh and kw odd. past: the kt - 1 frames before x; needed if kt > 1.
    scale: how often every pixel of x counts in height and width: (b n t scale*h scale*w).
    """
    from omniavatar.models import triton_kernels

    return triton_kernels.convolve(x, weight, bias, past, scale)


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    """Norm over the channels, times gamma (c), and SiLU: x (b c t h w) -> the same shape."""
    from omniavatar.models import triton_kernels

    return triton_kernels.norm_silu(x, gamma)


def norm_rope(x: Tensor, weight: Tensor, eps: float, table: Tensor, heads: int) -> Tensor:
    """`RMSNorm` over the whole width, split in heads and turned by `apply_rope`: (b s (h d)) -> (b s h d)."""
    from omniavatar.models import triton_kernels

    return triton_kernels.norm_rope(x, weight, eps, table, heads)
