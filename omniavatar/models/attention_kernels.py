"""Kernels for attention that can be asked for by name: torch's own, and those of packages.

attend = KERNELS["cudnn"]()
x = attend(q, k, v)             # (b s heads head_dim)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from omniavatar.errors import PlanError
from omniavatar.models.attention import Attention, sdpa


def torch_kernel(backend: SDPBackend) -> Attention:
    """One of the kernels of torch's scaled_dot_product_attention."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(q, k, v)

    return attention


@cache
def flash_attn_4() -> Attention:
    """FlashAttention written in CuTe, of the package flash-attn-4."""
    flash = installed("flash_attn.cute", "--pre 'flash-attn-4[cu13]'").flash_attn_func
    return opaque("flash_attn_4", lambda q, k, v: first(flash(q, k, v)))


@cache
def sage() -> Attention:
    """SageAttention's Triton kernels, of the package sageattention."""
    sageattn = installed("sageattention", "sageattention").sageattn
    return opaque("sage", lambda q, k, v: sageattn(q, k, v, tensor_layout="NHD"))


def installed(module: str, wanted: str) -> Any:
    """A module that attention may come from, which `pip install wanted` brings. Raises PlanError without it."""
    try:
        return import_module(module)
    except Exception as error:
        raise PlanError(f"attention from {module} does not import ({error}); pip install {wanted}") from error


def first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output of a kernel that may give the log-sum-exp as well."""
    return result[0] if isinstance(result, tuple) else result


def opaque(name: str, kernel: Attention) -> Attention:
    """A kernel into which torch's compiler does not look; it has no gradient."""
    operator = torch.library.custom_op(f"omniavatar::{name}", kernel_of(kernel), mutates_args=())
    operator.register_fake(lambda q, k, v: torch.empty_like(q))
    return operator


def kernel_of(kernel: Attention) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The kernel with the types written at it that torch reads, and a result of its own."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.cuda.device(q.device) if q.is_cuda else nullcontext():  # where packages start their kernels
            return kernel(q.contiguous(), k.contiguous(), v.contiguous()).contiguous()

    attention.__annotations__ = {"q": Tensor, "k": Tensor, "v": Tensor, "return": Tensor}
    return attention


KERNELS: dict[str, Callable[[], Attention]] = {
    "cudnn": lambda: torch_kernel(SDPBackend.CUDNN_ATTENTION),
    "flash": lambda: torch_kernel(SDPBackend.FLASH_ATTENTION),
    "efficient": lambda: torch_kernel(SDPBackend.EFFICIENT_ATTENTION),
    "math": lambda: torch_kernel(SDPBackend.MATH),
    "flash-attn-4": flash_attn_4,
    "sage": sage,
}
