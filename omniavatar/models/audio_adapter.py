"""OmniAvatar's audio layers (arXiv:2506.18866): speech features -> what is added to the tokens before some blocks.

    adapter = AudioAdapter(audio_in_dim=10752, audio_hidden_size=32, dim=5120, num_layers=40)
    residuals = adapter(rows)                       # (b, 4T-3, 10752) -> (b, 19, T, 5120)
    for residual, block in zip(residuals.unbind(1), adapter.entry_blocks): ...

The residual of a latent frame is added to every token of that frame before the block. Keys as in the published delta.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

ROWS_PER_LATENT = 4
FIRST_ENTRY_BLOCK = 2


class AudioPack(nn.Module):
    """Feature rows at the video rate -> one vector a latent frame.

    The VAE makes one latent of the first frame and of every four frames after it. So the first row is repeated
    three times in front, and groups of four rows are flattened (row by row), projected and normed, or not (`norm`).
    """

    def __init__(self, in_dim: int, hidden_size: int, *, norm: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(ROWS_PER_LATENT * in_dim, hidden_size)
        self.norm_out = nn.LayerNorm(hidden_size) if norm else nn.Identity()

    def forward(self, rows: Tensor) -> Tensor:
        """(b, 4T-3, in_dim) -> (b, T, hidden_size)."""
        count = rows.shape[1]
        if count % ROWS_PER_LATENT != 1:
            raise ValueError(f"{count} audio rows do not fill latent frames; needed are 4T-3 rows for T of them")
        first = rows[:, :1].expand(-1, ROWS_PER_LATENT - 1, -1)
        groups = rearrange(torch.cat([first, rows], dim=1), "b (t r) c -> b t (r c)", r=ROWS_PER_LATENT)
        # The bias says in what type the network computes: a projection may have its weight in a packed form.
        packed: Tensor = self.norm_out(self.proj(groups.to(self.proj.bias.dtype)))
        return packed


class AudioAdapter(nn.Module):
    """The packed sound and one projection for every block that it enters: 2 up to the middle of the network."""

    def __init__(
        self, *, audio_in_dim: int, audio_hidden_size: int, dim: int, num_layers: int, audio_norm: bool = True
    ) -> None:
        super().__init__()
        self.entry_blocks = range(FIRST_ENTRY_BLOCK, num_layers // 2 + 1)
        if not self.entry_blocks:
            raise ValueError(f"num_layers {num_layers} leaves no block for the sound; block 2 .. num_layers/2 take it")
        self.audio_in_dim = audio_in_dim
        self.audio_proj = AudioPack(audio_in_dim, audio_hidden_size, norm=audio_norm)
        self.audio_cond_projs = nn.ModuleList(nn.Linear(audio_hidden_size, dim) for _ in self.entry_blocks)

    def forward(self, rows: Tensor) -> Tensor:
        """(b, 4T-3, audio_in_dim) -> (b, P, T, dim); entry p belongs before block `entry_blocks[p]`."""
        packed = self.audio_proj(rows)
        return torch.stack([proj(packed) for proj in self.audio_cond_projs], dim=1)
