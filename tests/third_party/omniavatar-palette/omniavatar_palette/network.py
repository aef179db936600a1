"""The Wan transformer, whose blocks attend to a palette between their cross-attention and their feed-forward."""

from torch import nn

from omniavatar.sdk import Address, CrossAttention, WanBlock, WanDiT


class PaletteAttention(CrossAttention):
    """Attention of the tokens on the colours, through the engine's slot as all others."""

    def heads(self, x, inputs):
        q, k, v = self.project(x, inputs.conditions["palette"])
        return self.attention.cross(q, k, v, Address(self, inputs, "palette"))


class PaletteBlock(WanBlock):
    """A block with that layer; without a palette it is the base's block."""

    def __init__(self, *, dim, num_heads, eps, **numbers):
        super().__init__(dim=dim, num_heads=num_heads, eps=eps, **numbers)
        self.norm_palette = nn.LayerNorm(dim, eps)
        self.palette_attn = PaletteAttention(dim, num_heads, eps, self.self_attn.attention)

    def attend_to_conditions(self, x, inputs):
        x = super().attend_to_conditions(x, inputs)
        return x + self.palette_attn(self.norm_palette(x), inputs) if "palette" in inputs.conditions else x


class PaletteDiT(WanDiT):
    """colour_dim: numbers of a colour."""

    block_class = PaletteBlock

    def __init__(self, *, dim, colour_dim=3, **numbers):
        super().__init__(dim=dim, **numbers)
        self.colour_dim = colour_dim
        self.palette_embedding = nn.Linear(colour_dim, dim)

    def embed_palette(self, colours):
        """Colours (b n colour_dim) -> (b n d)."""
        return self.palette_embedding(colours.to(self.dtype))
