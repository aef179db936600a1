"""Attention as a strategy: any callable on (batch, tokens, heads, head_dim) tensors.

    out = sdpa(q, k, v)   # q (b s h d), k and v (b n h d) -> (b s h d)

A network receives one in its constructor and calls it for every self-attention; it never knows which one it is.
"""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from torch import Tensor
from torch.nn import functional

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Unmasked attention with scale 1/sqrt(d): q (b s h d), k and v (b n h d) -> (b s h d)."""
    q, k, v = (rearrange(x, "b s h d -> b h s d") for x in (q, k, v))
    return rearrange(functional.scaled_dot_product_attention(q, k, v), "b h s d -> b s h d")
