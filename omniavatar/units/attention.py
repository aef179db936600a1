"""Which kernel computes the self-attention of the transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from omniavatar.engine.unit import ALL, PipelineUnit, UnitSettings
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine


class AttentionKernel(PipelineUnit):
    """Another kernel for self-attention than the one that torch takes by itself.

    cudnn, flash, efficient and math are torch's own and differ in the last bits. flash-attn-4 (Hopper and later) and
    sage (SageAttention 1, arXiv:2410.02367: queries and keys in 8 bits, so it is lossy) come from packages.
    """

    name = "attention"
    optional_roles = (ALL,)
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
        from omniavatar.models.attention_kernels import KERNELS

        kernel = KERNELS[self.settings.kernel]()
        config = engine.models.config(engine.plan.experts[0])
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
