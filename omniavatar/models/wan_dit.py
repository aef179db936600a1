"""The Wan 2.1 video diffusion transformer (arXiv:2503.20314), state-dict keys as in the official files.

    dit = WanDiT(dim=1536, in_dim=16, ffn_dim=8960, out_dim=16, text_dim=4096, freq_dim=256, eps=1e-6,
                 patch_size=(1, 2, 2), num_heads=12, num_layers=30)
    velocity = dit(latents, timestep, context)

Letters in shapes: b batch, c channels, t h w latent frames, rows and columns, s tokens, d model width, n text tokens.
Conditions that come as channels (reference latents, masks) are concatenated to the latents by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from omniavatar.models import kernels
from omniavatar.models.attention import Address, Attention, sdpa, slot_of
from omniavatar.models.norm import RMSNorm
from omniavatar.models.rope import apply_rope, axis_dims, grid_positions, rope_table

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class PerToken:
    """A value for every token, few of which differ: the distinct ones, and which of them each token has.

    A modulation takes six times the memory of the tokens if it is written out for all of them; this one takes nothing.

    rows: the distinct values (k ...). index: the row of every token (b s) int64; (1 s) if all samples agree.
    """

    rows: Tensor
    index: Tensor

    @property
    def values(self) -> Tensor:
        """Written out for all tokens (b s ...)."""
        return self.rows[self.index]

    def __add__(self, change: Tensor) -> PerToken:
        """The same change (1 ...) for all tokens."""
        return PerToken(self.rows + change, self.index)


TimeValue = Tensor | PerToken
"""What comes from the time step: one value for every sample (b ...), or one for every token."""


@dataclass(eq=False)
class BlockInputs:
    """What a block is given beside its tokens; it takes what it knows.

    t_mod: the time step's modulation (b 6 d), or one of few for every token. rope: rotary table (s, head_dim/2, 2).
    conditions: what the tokens attend to or get otherwise, by name: "text" (b n d), "image" (b m d), and whatever units
        and blocks agree on. The batch comes first in each, or 1 if all samples have the same. A name with a dot,
        "nag.text", is private to the unit before the dot.
    index: the number of the block in its network. left_out: the blocks that no sample of this call runs.
    call: the engine's transformer call, if there is one. A network has no use for it; what wraps a slot may have.
    beside: what attentions of this block have found beside their results, such as a map, by name.
    """

    t_mod: TimeValue
    rope: Tensor
    conditions: Mapping[str, Tensor]
    index: int = 0
    left_out: Set[int] = frozenset()
    call: Any = None
    beside: dict[str, Tensor] = field(default_factory=dict)

    def samples(self, rows: Tensor) -> BlockInputs:
        """The same for some samples of the batch, by their numbers (k) int64."""
        return replace(
            self,
            t_mod=replace(self.t_mod, index=some(self.t_mod.index, rows))
            if isinstance(self.t_mod, PerToken)
            else some(self.t_mod, rows),
            conditions={name: some(condition, rows) for name, condition in self.conditions.items()},
        )


def some(values: Tensor, rows: Tensor) -> Tensor:
    """The values of some samples (b ...); (1 ...) if all samples have the same."""
    return values if len(values) == 1 else values[rows]


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding in float64: (...) -> (..., dim), cosines first, frequencies 10000^(-2j/dim)."""
    exponents = torch.arange(dim // 2, dtype=torch.float64, device=timestep.device) / (dim // 2)
    angle = timestep.double()[..., None] * 10000.0**-exponents
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm's affine part (Peebles and Xie 2022, arXiv:2212.09748): (b s d) by (b 1 d) or (b s d)."""
    return x * (1 + scale) + shift


def parts(modulation: Tensor, time: TimeValue) -> list[TimeValue]:
    """The m parts (b d) of a learned modulation (1 m d) plus that of the time, (b m d) or (b d) for all parts alike."""
    rows = time.rows if isinstance(time, PerToken) else time
    sums = (modulation + rows.reshape(len(rows), -1, rows.shape[-1])).unbind(1)
    return [PerToken(part, time.index) if isinstance(time, PerToken) else part for part in sums]


def each(part: TimeValue) -> Tensor:
    """A part (b d) as tokens take it: (b 1 d), or (b s d) if they differ."""
    return part.values if isinstance(part, PerToken) else rearrange(part, "b d -> b 1 d")


class AttentionLayer(nn.Module):
    """Projections of an attention; queries and keys pass an RMS norm over the full width before the split in heads."""

    def __init__(self, dim: int, num_heads: int, eps: float, attention: Attention = sdpa) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention = slot_of(attention)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def split_heads(self, x: Tensor) -> Tensor:
        """(b s (h d)) -> (b s h d)."""
        return rearrange(x, "b s (h d) -> b s h d", h=self.num_heads)

    def output(self, attended: Tensor) -> Tensor:
        """(b s h d) -> (b s d)."""
        projected: Tensor = self.o(rearrange(attended, "b s h d -> b s (h d)"))
        return projected


class SelfAttention(AttentionLayer):
    """Attention among the video tokens, positions by rotary embedding, computed by the strategy it was given."""

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """(b s d) -> (b s d)."""
        q = self.turned(self.q(x), self.norm_q, inputs.rope)
        k = self.turned(self.k(x), self.norm_k, inputs.rope)
        return self.output(self.attention(q, k, self.split_heads(self.v(x)), Address(self, inputs)))

    def turned(self, x: Tensor, norm: RMSNorm, rope: Tensor) -> Tensor:
        """Queries or keys (b s (h d)), normed and turned by their positions -> (b s h d)."""
        if kernels.fit(x):
            return kernels.norm_rope(x, norm.weight, norm.eps, rope, self.num_heads)
        return apply_rope(self.split_heads(norm(x)), rope)


class CrossAttention(AttentionLayer):
    """Attention of the video tokens on the text; no mask, so its zero rows take part.

    A subclass may attend to further conditions in `heads`, in front of the output projection.
    """

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x (b s d), keys and values of context (b n d), each as (b, tokens, heads, head_dim)."""
        return self.split_heads(self.norm_q(self.q(x))), *self.keys_values(context)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a text (b n d), each (b n heads head_dim)."""
        return self.split_heads(self.norm_k(self.k(context))), self.split_heads(self.v(context))

    def heads(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """What the heads make of the conditions, in front of the output projection: (b s d) -> (b s heads head_dim)."""
        q, k, v = self.project(x, inputs.conditions["text"])
        return self.attention.cross(q, k, v, Address(self, inputs, "text"))

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """(b s d) -> (b s d)."""
        return self.output(self.heads(x, inputs))


class WanBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and the last are modulated by the time step.

    A subclass may name another class for its cross-attention: constructor (dim, num_heads, eps, attention), call
    (x, inputs). One that has a layer more between two parts overrides the part in front of it:

        def attend_to_conditions(self, x, inputs):
            x = super().attend_to_conditions(x, inputs)
            return x + self.audio(x, inputs.conditions["audio"])
    """

    cross_attention: ClassVar[type[nn.Module]] = CrossAttention

    def __init__(self, *, dim: int, ffn_dim: int, num_heads: int, eps: float, attention: Attention = sdpa) -> None:
        super().__init__()
        slot = slot_of(attention)
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(dim, num_heads, eps, slot)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.cross_attn = self.cross_attention(dim, num_heads, eps, slot)
        self.norm2 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU("tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """x (b s d) -> (b s d)."""
        times = parts(self.modulation, inputs.t_mod)
        x = self.attend_to_tokens(x, inputs, times[:3])
        x = self.attend_to_conditions(x, inputs)
        return self.feed_forward(x, times[3:])

    def attend_to_tokens(self, x: Tensor, inputs: BlockInputs, times: list[TimeValue]) -> Tensor:
        """The tokens (b s d) and what self-attention adds; times: shift, scale and gate, each (b d) or per token."""
        shift, scale, gate = times
        attended: Tensor = self.self_attn(modulate(self.norm1(x), each(shift), each(scale)), inputs)
        return x + attended * each(gate)

    def attend_to_conditions(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """The tokens (b s d) and what cross-attention adds."""
        attended: Tensor = self.cross_attn(self.norm3(x), inputs)
        return x + attended

    def feed_forward(self, x: Tensor, times: list[TimeValue]) -> Tensor:
        """The tokens (b s d) and what the feed-forward adds; times: shift, scale and gate, each (b d) or per token."""
        shift, scale, gate = times
        residual: Tensor = self.ffn(modulate(self.norm2(x), each(shift), each(scale)))
        return x + residual * each(gate)


class Head(nn.Module):
    """From tokens to the values of their patches, modulated by the time embedding."""

    def __init__(self, dim: int, patch_values: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.head = nn.Linear(dim, patch_values)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: Tensor, t_emb: TimeValue) -> Tensor:
        """x (b s d), t_emb (b d) or per token -> (b s patch_values)."""
        shift, scale = parts(self.modulation, t_emb)
        values: Tensor = self.head(modulate(self.norm(x), each(shift), each(scale)))
        return values


class WanDiT(nn.Module):
    """Predicts the flow velocity of noisy latents. `forward` is the composition of the public methods.

    Inputs of any floating type are cast to the type of the weights; `attention` computes every self-attention, and
    the cross-attentions too if it is an `AttentionSlot`.
    """

    block_class: ClassVar[type[WanBlock]] = WanBlock

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
        attention: Attention = sdpa,
    ) -> None:
        super().__init__()
        patch_size = check_patch_size(patch_size)
        check_widths(dim=dim, num_heads=num_heads, freq_dim=freq_dim)
        self.dim, self.in_dim, self.out_dim, self.freq_dim = dim, in_dim, out_dim, freq_dim
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.head_dim = dim // num_heads
        patch_volume = patch_size[0] * patch_size[1] * patch_size[2]

        self.patch_embedding = nn.Conv3d(in_dim, dim, kernel_size=patch_size, stride=patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        slot = slot_of(attention)
        self.blocks = nn.ModuleList(
            self.block_class(dim=dim, ffn_dim=ffn_dim, num_heads=num_heads, eps=eps, attention=slot)
            for _ in range(num_layers)
        )
        self.head = Head(dim, out_dim * patch_volume, eps)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights outside the blocks, in which the network computes."""
        return self.patch_embedding.weight.dtype

    def embed_patches(self, latents: Tensor) -> tuple[Tensor, Grid]:
        """Latents (b c t h w) -> tokens (b s d) in frame-row-column order, and the grid (f, h, w) of tokens."""
        self._check_latents(latents)
        x: Tensor = self.patch_embedding(latents.to(self.dtype))
        frames, rows, columns = x.shape[2:]
        # Contiguous, or every norm in every block would work on strided rows.
        return rearrange(x, "b d f h w -> b (f h w) d").contiguous(), (frames, rows, columns)

    def embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Time step in 0..1000 (b) -> embedding (b d), modulation (b 6 d).

        The sinusoid sees the time step as given; only its result takes the type of the weights.
        """
        t_emb: Tensor = self.time_embedding(sinusoid(timestep, self.freq_dim).to(self.dtype))
        t_mod: Tensor = self.time_projection(t_emb)
        return t_emb, t_mod.unflatten(-1, (6, self.dim))

    def embed_times(self, timesteps: Tensor, index: Tensor) -> tuple[PerToken, PerToken]:
        """Time steps (k), of which each token has the one at its `index` -> embedding and modulation of every token.

        index: (b s) int64; (1 s) if all samples agree. The rows of the results are (k d) and (k 6 d).
        """
        t_emb, t_mod = self.embed_time(timesteps)
        return PerToken(t_emb, index), PerToken(t_mod, index)

    def embed_token_times(self, timesteps: Tensor) -> tuple[PerToken, PerToken]:
        """A time step for every token (b s) -> embedding and modulation of every token.

        It sorts the tokens and waits for the device; who knows which tokens share a time step calls `embed_times`.
        """
        return self.embed_times(*timesteps.unique(return_inverse=True))

    def embed_text(self, context: Tensor) -> Tensor:
        """Text encoder rows (b n text_dim) -> (b n d)."""
        embedded: Tensor = self.text_embedding(context.to(self.dtype))
        return embedded

    def rope(self, grid: Grid, device: torch.device | str | None = None, first_frame: int = 0) -> Tensor:
        """Rotary table of all tokens of a grid, (s, head_dim/2, 2) float32.

        Positions count from 0, those of frames from `first_frame`.
        """
        return rope_table(grid_positions(grid, device, first_frame), self.head_dim)

    def unembed(self, x: Tensor, t_emb: TimeValue, grid: Grid) -> Tensor:
        """Tokens (b s d), t_emb (b d) or per token, grid (f, h, w) with s = f*h*w -> (b out t h w)."""
        return self.unpatchify(self.head(x, t_emb), grid)

    def unpatchify(self, values: Tensor, grid: Grid) -> Tensor:
        """The head's values of every patch (b s patch_values) -> (b out t h w)."""
        f, h, w = grid
        pf, ph, pw = self.patch_size
        pattern = "b (f h w) (pf ph pw c) -> b c (f pf) (h ph) (w pw)"
        return rearrange(values, pattern, f=f, h=h, w=w, pf=pf, ph=ph, pw=pw)

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Latents (b c t h w), time step (b) or (b s), text rows (b n text_dim) -> velocity (b out t h w)."""
        x, grid = self.embed_patches(latents)
        embed = self.embed_time if timestep.ndim == 1 else self.embed_token_times
        t_emb, t_mod = embed(timestep)
        conditions = {"text": self.embed_text(context)}
        return self.unembed(self.run_blocks(x, BlockInputs(t_mod, self.rope(grid, x.device), conditions)), t_emb, grid)

    def run_blocks(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """All blocks one after the other: (b s d) -> (b s d)."""
        for index, block in enumerate(self.blocks):
            x = block(x, replace(inputs, index=index, beside={}))
        return x

    def _check_latents(self, latents: Tensor) -> None:
        """A convolution would cut an odd row off silently."""
        if latents.ndim != 5 or latents.shape[1] != self.in_dim:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; needed is (b, {self.in_dim}, t, h, w)")
        if any(size % patch for size, patch in zip(latents.shape[2:], self.patch_size, strict=True)):
            raise ValueError(f"latents of (t, h, w) {tuple(latents.shape[2:])} do not divide into {self.patch_size}")


def check_patch_size(patch_size: Grid) -> Grid:
    """Three positive numbers, as a tuple (a TOML table gives a list)."""
    if len(patch_size) != 3 or min(patch_size) < 1:
        raise ValueError(f"patch_size {patch_size} must be three positive numbers (frames, rows, columns)")
    frames, rows, columns = patch_size
    return frames, rows, columns


def check_widths(*, dim: int, num_heads: int, freq_dim: int) -> None:
    """Reject widths that cannot be split as the network needs them."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"dim {dim} does not divide into num_heads {num_heads}")
    if freq_dim < 2 or freq_dim % 2:
        raise ValueError(f"freq_dim {freq_dim} must be even: half of it are cosines, half sines")
    axis_dims(dim // num_heads)
