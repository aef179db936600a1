"""Where kernels of our own take the place of several of torch's: Hopper GPUs and later, half precision, no gradient.

Each function computes what the layers named in its docstring compute, in fewer passes over memory: sums, norms and
products in float32, rounded once at the end. Ask `fit` first; the kernels themselves are in `triton_kernels`.
Pictures are (b c t h w) in the memory format channels_last_3d.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

OLDEST = (9, 0)
"""Compute capability of Hopper."""
HALF = (torch.float16, torch.bfloat16)


def fit(x: Tensor) -> bool:
    """Whether the kernels can be used for this tensor."""
    return x.is_cuda and x.dtype in HALF and not torch.is_grad_enabled() and installed(x.device.index)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def installed(device: int) -> bool:
    """Whether there is Triton, which starts kernels on the current device, and that is one which it serves well."""
    is_current = device == torch.cuda.current_device()
    return is_current and find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= OLDEST


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None = None, scale: int = 1) -> Tensor:
    """A convolution with stride 1, `nn.Conv3d`: x (b c t h w) -> (b n t h w), zeros around the pictures.

    weight: (n c kt kh kw), kh and kw odd. past: the kt - 1 frames before x; needed if kt > 1.
    scale: how often every pixel of x counts in height and width: (b n t scale*h scale*w).
    """
    from omniavatar.models.triton_kernels import convolve

    return convolve(x, weight, bias, past, scale)


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    """Norm over the channels, times gamma (c), and SiLU: x (b c t h w) -> the same shape."""
    from omniavatar.models.triton_kernels import norm_silu

    return norm_silu(x, gamma)


def norm_rope(x: Tensor, weight: Tensor, eps: float, table: Tensor, heads: int) -> Tensor:
    """`RMSNorm` over the whole width, split in heads and turned by `apply_rope`: (b s (h d)) -> (b s h d)."""
    from omniavatar.models.triton_kernels import norm_rope

    return norm_rope(x, weight, eps, table, heads)
