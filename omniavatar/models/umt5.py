"""UMT5's encoder (Chung et al. 2023, arXiv:2304.09151), the text encoder of Wan; keys as in Wan's file.

encoder = UMT5Encoder(vocab=256384, dim=4096, dim_attn=4096, dim_ffn=10240, num_heads=64, num_layers=24,
                      num_buckets=32, shared_pos=False)
rows = encoder(ids, mask)   # (b n) each -> (b n dim), rows of padding are zero
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from omniavatar.models.norm import RMSNorm

EPS = 1e-6
MAX_DISTANCE = 128


def relative_buckets(tokens: int, num_buckets: int, device: torch.device) -> Tensor:
    """Bucket of the distance key - query (Raffel et al. 2019, arXiv:1910.10683): (n n) int64.

    The upper half of the buckets is for keys behind the query. Within a half, small distances have a bucket each,
    larger ones share buckets that widen logarithmically up to `MAX_DISTANCE`.
    """
    position = torch.arange(tokens, device=device)
    relative = position[None, :] - position[:, None]
    half = num_buckets // 2
    exact = half // 2
    distance = relative.abs()
    # In this order of operations: a distance on the border of two buckets otherwise falls into the other one.
    fraction = (distance.clamp(min=exact).float() / exact).log() / math.log(MAX_DISTANCE / exact)
    logarithmic = exact + (fraction * (half - exact)).long()
    bucket = torch.where(distance < exact, distance, logarithmic.clamp(max=half - 1))
    return bucket + half * (relative > 0)


class RelativePosition(nn.Module):
    """A learned attention bias for each bucket of distances and each head."""

    def __init__(self, num_buckets: int, num_heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_buckets, num_heads)

    def forward(self, tokens: int) -> Tensor:
        """-> (1 h n n)."""
        buckets = relative_buckets(tokens, self.embedding.num_embeddings, self.embedding.weight.device)
        bias: Tensor = self.embedding(buckets)
        return rearrange(bias, "q k h -> 1 h q k")


class T5Attention(nn.Module):
    """Self-attention without biases and without the factor 1/sqrt(d)."""

    def __init__(self, dim: int, dim_attn: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim_attn, bias=False)
        self.k = nn.Linear(dim, dim_attn, bias=False)
        self.v = nn.Linear(dim, dim_attn, bias=False)
        self.o = nn.Linear(dim_attn, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (b n dim), bias (b h n n) -> (b n dim). The kernels take the softmax in float32."""
        q, k, v = (rearrange(layer(x), "b n (h d) -> b h n d", h=self.num_heads) for layer in (self.q, self.k, self.v))
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        projected: Tensor = self.o(rearrange(attended, "b h n d -> b n (h d)"))
        return projected


class T5FeedForward(nn.Module):
    """Gated tanh-GELU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim: int, dim_ffn: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(dim, dim_ffn, bias=False), nn.GELU("tanh"))
        self.fc1 = nn.Linear(dim, dim_ffn, bias=False)
        self.fc2 = nn.Linear(dim_ffn, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b n dim) -> (b n dim)."""
        projected: Tensor = self.fc2(self.fc1(x) * self.gate(x))
        return projected


class T5Block(nn.Module):
    """Pre-norm attention and feed-forward; owns its position bias unless the encoder shares one."""

    def __init__(
        self, *, dim: int, dim_attn: int, dim_ffn: int, num_heads: int, pos_embedding: RelativePosition | None
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim, EPS)
        self.attn = T5Attention(dim, dim_attn, num_heads)
        self.norm2 = RMSNorm(dim, EPS)
        self.ffn = T5FeedForward(dim, dim_ffn)
        if pos_embedding is not None:
            self.pos_embedding = pos_embedding

    def forward(self, x: Tensor, padding: Tensor, shared_bias: Tensor | None) -> Tensor:
        """x (b n dim), padding (b n) true where there is no token, shared_bias (1 h n n) -> (b n dim)."""
        bias: Tensor = self.pos_embedding(x.shape[1]) if shared_bias is None else shared_bias
        # The most negative number, not -inf: an empty prompt would otherwise give nan.
        bias = bias.masked_fill(rearrange(padding, "b k -> b 1 1 k"), torch.finfo(bias.dtype).min)
        x = x + self.attn(self.norm1(x), bias)
        residual: Tensor = self.ffn(self.norm2(x))
        return x + residual


class UMT5Encoder(nn.Module):
    """Token ids -> text embeddings. With `shared_pos` all layers use one position bias, as T5 and mT5 do."""

    def __init__(
        self,
        *,
        vocab: int,
        dim: int,
        dim_attn: int,
        dim_ffn: int,
        num_heads: int,
        num_layers: int,
        num_buckets: int,
        shared_pos: bool,
    ) -> None:
        super().__init__()
        if dim_attn % num_heads:
            raise ValueError(f"dim_attn {dim_attn} does not divide into num_heads {num_heads}")
        if num_buckets < 4 or num_buckets % 4:
            raise ValueError(f"num_buckets {num_buckets} must be a multiple of 4: two directions, each half exact")
        self.token_embedding = nn.Embedding(vocab, dim)
        self.pos_embedding = RelativePosition(num_buckets, num_heads) if shared_pos else None
        self.blocks = nn.ModuleList(
            T5Block(
                dim=dim,
                dim_attn=dim_attn,
                dim_ffn=dim_ffn,
                num_heads=num_heads,
                pos_embedding=None if shared_pos else RelativePosition(num_buckets, num_heads),
            )
            for _ in range(num_layers)
        )
        self.norm = RMSNorm(dim, EPS)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids (b n), mask (b n) nonzero where there is a token -> (b n dim), zero where there is none."""
        padding = mask == 0
        shared_bias = None if self.pos_embedding is None else self.pos_embedding(ids.shape[1])
        x: Tensor = self.token_embedding(ids)
        for block in self.blocks:
            x = block(x, padding, shared_bias)
        x = self.norm(x)
        return x.masked_fill(padding[..., None], 0)
