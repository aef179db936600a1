"""Where kernels of our own take the place of several of torch's: Hopper GPUs, half precision, no gradient.

Each function computes what the layers named in its docstring compute, in fewer passes over memory: sums, norms and
products in float32, rounded once at the end, to the type of x. Ask `fit` first; the kernels are in `triton_kernels`.
Pictures are (b c t h w), best in the memory format channels_last_3d, which is that of the results.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

log = logging.getLogger(__name__)

HOPPER = 9
"""Major compute capability of the GPUs on which the kernels were tested and measured."""
HALF_PRECISION = (torch.float16, torch.bfloat16)


def fit(x: Tensor) -> bool:
    """Whether the kernels can be used for this tensor, which lies on the current device."""
    return x.is_cuda and x.dtype in HALF_PRECISION and not torch.is_grad_enabled() and serve(x.device.index)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def serve(device: int) -> bool:
    """Whether they run on a GPU: it is of their kind, the current one, where Triton starts kernels, and they work."""
    is_hopper = torch.cuda.get_device_capability(device)[0] == HOPPER
    return is_hopper and device == torch.cuda.current_device() and work(device)


@cache
def work(device: int | torch.device) -> bool:
    """Try one: Triton needs a C compiler, Python's headers and a folder for what it compiles."""
    if find_spec("triton") is None:
        return False
    try:
        x = torch.ones(1, 16, 1, 1, 1, dtype=torch.float16, device=device)
        norm_silu(x, x.flatten()).sum().item()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        log.warning("Triton does not work here, so torch's slower kernels are used: %s", reason)
        return False
    return True


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
