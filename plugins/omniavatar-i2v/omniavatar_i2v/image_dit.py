"""The image-to-video transformer of Wan 2.1 (arXiv:2503.20314), state-dict keys as in the official files.

    dit = ImageDiT(dim=5120, in_dim=36, ..., clip_dim=1280)
    velocity = dit(torch.cat([latents, condition], dim=1), timestep, text, features)

It is `WanDiT` with a second condition, "image": tokens of one or two pictures, which every block attends to with keys
and values of their own. Networks without such tokens (Wan 2.2 I2V, `in_dim` 36) are plain `WanDiT`s.
Letters in shapes as in `omniavatar.models.wan_dit`; m image tokens.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from omniavatar.sdk import Address, Attention, BlockInputs, CrossAttention, Grid, RMSNorm, WanBlock, WanDiT, sdpa


class ImageCrossAttention(CrossAttention):
    """o(attention to the text + attention to the pictures), both from the same queries.

    The condition "image" are the tokens of the pictures (b m d); without it there is text alone. One program takes
    everything in front of the text for image tokens, another always the first 257; either is a matter of what is put
    where.
    """

    def __init__(self, dim: int, num_heads: int, eps: float, attention: Attention = sdpa) -> None:
        super().__init__(dim, num_heads, eps, attention)
        self.k_img = nn.Linear(dim, dim)
        self.v_img = nn.Linear(dim, dim)
        self.norm_k_img = RMSNorm(dim, eps)

    def heads(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Text (b n d) and pictures (b m d): (b s d) -> (b s heads head_dim)."""
        text, image = inputs.conditions["text"], inputs.conditions.get("image")
        q, k, v = self.project(x, text)
        heads = self.attention.cross(q, k, v, Address(self, inputs, "text"))
        if image is None:
            return heads
        k_img = self.split_heads(self.norm_k_img(self.k_img(image)))
        v_img = self.split_heads(self.v_img(image))
        return heads + self.attention.cross(q, k_img, v_img, Address(self, inputs, "image"))


class ImageBlock(WanBlock):
    """A block that attends to pictures, too."""

    cross_attention: ClassVar[type[nn.Module]] = ImageCrossAttention


class ImageEmbedding(nn.Module):
    """CLIP tokens to the width of the transformer.

    positions: learned positions added to the tokens; those of the first-last-frame model tell two pictures apart.
    """

    def __init__(self, clip_dim: int, dim: int, positions: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(clip_dim),
            nn.Linear(clip_dim, clip_dim),
            nn.GELU(),
            nn.Linear(clip_dim, dim),
            nn.LayerNorm(dim),
        )
        self.emb_pos = nn.Parameter(torch.zeros(1, positions, clip_dim)) if positions else None

    def forward(self, features: Tensor) -> Tensor:
        """(b m clip_dim) -> (b m d)."""
        if self.emb_pos is not None:
            features = features + self.emb_pos
        embedded: Tensor = self.proj(features)
        return embedded


class ImageDiT(WanDiT):
    """Predicts the flow velocity from latents with condition channels, text, and the CLIP tokens of pictures.

    clip_dim: width of the CLIP tokens. image_positions: of how many tokens the positions are learned (514, two
    pictures, in the first-last-frame model); 0: of none.
    """

    block_class: ClassVar[type[WanBlock]] = ImageBlock

    def __init__(  # noqa: PLR0913 - the numbers of a published configuration
        self,
        *,
        dim: int,
        in_dim: int,
        ffn_dim: int,
        out_dim: int,
        text_dim: int,
        freq_dim: int,
        eps: float,
        patch_size: Grid,
        num_heads: int,
        num_layers: int,
        clip_dim: int = 1280,
        image_positions: int = 0,
        attention: Attention = sdpa,
    ) -> None:
        super().__init__(
            dim=dim,
            in_dim=in_dim,
            ffn_dim=ffn_dim,
            out_dim=out_dim,
            text_dim=text_dim,
            freq_dim=freq_dim,
            eps=eps,
            patch_size=patch_size,
            num_heads=num_heads,
            num_layers=num_layers,
            attention=attention,
        )
        self.clip_dim, self.image_positions = clip_dim, image_positions
        self.img_emb = ImageEmbedding(clip_dim, dim, image_positions)

    def embed_image(self, features: Tensor) -> Tensor:
        """CLIP tokens (b m clip_dim) -> (b m d)."""
        self._check_features(features)
        embedded: Tensor = self.img_emb(features.to(self.dtype))
        return embedded

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor, features: Tensor | None = None) -> Tensor:
        """As `WanDiT.forward`, with CLIP tokens (b m clip_dim)."""
        x, grid = self.embed_patches(latents)
        embed = self.embed_time if timestep.ndim == 1 else self.embed_token_times
        t_emb, t_mod = embed(timestep)
        conditions = {"text": self.embed_text(context)}
        if features is not None:
            conditions["image"] = self.embed_image(features)
        return self.unembed(self.run_blocks(x, BlockInputs(t_mod, self.rope(grid, x.device), conditions)), t_emb, grid)

    def _check_features(self, features: Tensor) -> None:
        """One picture too few would otherwise be broadcast over the positions of two, or the like."""
        count = self.image_positions or "m"
        if features.ndim != 3 or features.shape[2] != self.clip_dim or count not in ("m", features.shape[1]):
            shape = tuple(features.shape)
            raise ValueError(f"image tokens have shape {shape}; needed is (b, {count}, {self.clip_dim})")
