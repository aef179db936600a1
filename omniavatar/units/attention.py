"""Which kernel computes the self-attention of the transformer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from omniavatar.engine.engine import Engine
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.attention import Attention, sdpa


class AttentionKernel(PipelineUnit):
    """Another kernel for self-attention than the one that torch takes by itself.

    cudnn, flash, efficient and math are torch's own and differ in the last bits. flash-attn-4 (Hopper and later) and
    sage (SageAttention 1, arXiv:2410.02367: queries and keys in 8 bits, so it is lossy) come from packages.
    """

    name = "attention"
    roles = ("dit",)
    claims = ("attention_kernel",)

    class Settings(UnitSettings):
        kernel: Literal["auto", "cudnn", "flash", "efficient", "math", "flash-attn-4", "sage"] = Field(
            "auto", description="what computes attention; the last two are packages to install"
        )

    settings: Settings

    @hookimpl(tryfirst=True)
    def setup(self, engine: Engine) -> None:
        if self.settings.kernel == "auto":
            return
        kernel = KERNELS[self.settings.kernel]()
        config = engine.models.config("dit")
        heads = config["num_heads"]
        q = torch.zeros(1, 256, heads, config["dim"] // heads, dtype=engine.dtype, device=engine.device)
        try:
            kernel(q, q, q)
        except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
            raise PlanError(
                f"{self} does not run on {engine.device} with {heads} heads of {q.shape[-1]} in {engine.dtype} "
                f"({reason}); take another kernel, or leave '{self.name}' out"
            ) from error
        engine.attention.wrap(lambda _: kernel)


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
