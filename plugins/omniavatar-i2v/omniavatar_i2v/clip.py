"""The image half of open-CLIP's XLM-RoBERTa-large ViT-H/14, as Wan uses it (Radford et al. 2021, arXiv:2103.00020).

    encoder = ClipImageEncoder(tokens=257, patch_size=14, dim=1280, out_dim=1024, mlp_ratio=4, num_heads=16,
                               num_layers=32)
    features = encoder(picture)   # (b 3 h w) in [-1, 1] -> (b 257 1280)

State-dict keys are those of the official file, whose text half (`textual.*`) is left out. Wan takes the tokens before
the last layer, so that layer, the norm behind it and the projection are weights that no call uses.
Letters in shapes: b batch, h w rows and columns, n tokens, d width.
"""

from __future__ import annotations

from math import isqrt

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from omniavatar.sdk import sdpa

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained with, red, green and blue in [0, 1]."""


class ClipImageEncoder(nn.Module):
    """Pictures to tokens that say what they show. `log_scale` is CLIP's own and unused here."""

    def __init__(
        self,
        *,
        tokens: int,
        patch_size: int,
        dim: int,
        out_dim: int,
        mlp_ratio: int,
        num_heads: int,
        num_layers: int,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        side = isqrt(tokens - 1)
        if side < 1 or side * side != tokens - 1:
            raise ValueError(f"tokens {tokens} must be 1 and a square number, such as 257")
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim {dim} does not divide into num_heads {num_heads}")
        self.tokens, self.dim = tokens, dim
        self.image_size = side * patch_size
        self.visual = VisionTransformer(tokens, patch_size, dim, out_dim, mlp_ratio, num_heads, num_layers, eps)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, pictures: Tensor) -> Tensor:
        """(b 3 h w) of any size in [-1, 1] -> (b n d): the class token and the patches, row by row."""
        features: Tensor = self.visual(self.prepared(pictures).to(self.visual.cls_embedding.dtype))
        return features

    def side_by_side(self, pictures: Tensor) -> Tensor:
        """The tokens of k pictures (k 3 h w), one after the other: (1 k*n d)."""
        features: Tensor = rearrange(self(pictures), "k n d -> 1 (k n) d")
        return features

    def prepared(self, pictures: Tensor) -> Tensor:
        """Pictures stretched to the square that the network sees, in CLIP's units, float32."""
        size = (self.image_size, self.image_size)
        square = functional.interpolate(pictures.float(), size=size, mode="bicubic", align_corners=False)
        mean, std = square.new_tensor((MEAN, STD)).view(2, 3, 1, 1)
        prepared: Tensor = ((square + 1) / 2 - mean) / std
        return prepared


class VisionTransformer(nn.Module):
    """The vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929), with a norm before the layers."""

    def __init__(
        self,
        tokens: int,
        patch_size: int,
        dim: int,
        out_dim: int,
        mlp_ratio: int,
        num_heads: int,
        num_layers: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size, bias=False)
        self.cls_embedding = nn.Parameter(torch.randn(1, 1, dim) / dim**0.5)
        self.pos_embedding = nn.Parameter(torch.randn(1, tokens, dim) / dim**0.5)
        self.pre_norm = nn.LayerNorm(dim, eps)
        self.transformer = nn.ModuleList(Layer(dim, mlp_ratio, num_heads, eps) for _ in range(num_layers))
        self.post_norm = nn.LayerNorm(dim, eps)
        self.head = nn.Parameter(torch.randn(dim, out_dim) / dim**0.5)

    def forward(self, pictures: Tensor) -> Tensor:
        """(b 3 h w) -> (b n d), the output of the last layer but one."""
        patches = rearrange(self.patch_embedding(pictures), "b d h w -> b (h w) d")
        tokens = torch.cat([self.cls_embedding.expand(len(patches), -1, -1), patches], dim=1)
        x: Tensor = self.pre_norm(tokens + self.pos_embedding)
        for layer in self.transformer[:-1]:
            x = layer(x)
        return x


class Layer(nn.Module):
    """Self-attention and feed-forward, each behind a norm."""

    def __init__(self, dim: int, mlp_ratio: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = nn.Sequential(nn.Linear(dim, dim * mlp_ratio), nn.GELU(), nn.Linear(dim * mlp_ratio, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(b n d) -> (b n d)."""
        x = x + self.attn(self.norm1(x))
        residual: Tensor = self.mlp(self.norm2(x))
        return x + residual


class SelfAttention(nn.Module):
    """Queries, keys and values from one projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(b n d) -> (b n d)."""
        q, k, v = rearrange(self.to_qkv(x), "b n (three h d) -> three b n h d", three=3, h=self.num_heads)
        attended: Tensor = self.proj(rearrange(sdpa(q, k, v), "b n h d -> b n (h d)"))
        return attended
