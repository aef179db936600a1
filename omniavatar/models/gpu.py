"""Whether the kernels of `triton_kernels` run on a GPU."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch

log = logging.getLogger(__name__)

HOPPER = 9
"""Major compute capability of the GPUs on which the kernels were tested and measured."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def serves(device: int) -> bool:
    """Whether a GPU is of their kind and they work there."""
    return torch.cuda.get_device_capability(device)[0] == HOPPER and starts(device)


@cache
def starts(device: int | torch.device) -> bool:
    """Try one: Triton needs a C compiler, Python's headers and a folder for what it compiles."""
    if find_spec("triton") is None:
        return False
    try:
        from omniavatar.models import triton_kernels

        x = torch.ones(1, 16, 1, 1, 1, dtype=torch.float16, device=device)
        triton_kernels.norm_silu(x, x.flatten()).sum().item()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        log.warning("Triton does not work here, so torch's slower kernels are used: %s", reason)
        return False
    return True
