"""Networks that compute almost nothing, so that a test can work out by hand what the engine and a unit make of them.

They stand where the engine expects the roles `dit`, `vae`, `audio_encoder` and `audio_adapter`:

    engine = Engine(Plan(units), GivenModels(dit=FakeDiT(), vae=FakeVAE()))
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn import functional

from omniavatar.models.wan_dit import BlockInputs

CHANNELS = 4


class FakeBlock(nn.Module):
    """Adds the mean of the text to every token and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        self.calls += 1
        return x + inputs.conditions["text"].mean(dim=1, keepdim=True)


class FakeDiT(nn.Module):
    """One token a latent pixel: velocity = latents + num_layers * mean of the text (b n 1), without any weight.

    condition_channels: channels behind the latents that it takes and ignores. `dtypes` keeps the type of every input.
    """

    patch_size: tuple[int, int, int] = (1, 1, 1)

    def __init__(self, condition_channels: int = 0, num_layers: int = 4) -> None:
        super().__init__()
        self.in_dim = CHANNELS + condition_channels
        self.blocks = nn.ModuleList(FakeBlock() for _ in range(num_layers))
        self.dtypes: list[torch.dtype] = []

    @property
    def calls(self) -> int:
        """Transformer calls so far."""
        return len(self.dtypes)

    def embed_patches(self, latents: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        self.dtypes.append(latents.dtype)
        frames, rows, columns = latents.shape[2:]
        return rearrange(latents, "b c t h w -> b (t h w) c"), (frames, rows, columns)

    def embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        t_emb = repeat(timestep.float() / 1000, "b -> b d", d=self.in_dim)
        return t_emb, repeat(t_emb, "b d -> b m d", m=6)

    def embed_text(self, context: Tensor) -> Tensor:
        return context

    def rope(self, grid: tuple[int, int, int], device: torch.device, first_frame: int = 0) -> Tensor:
        return torch.zeros(grid[0] * grid[1] * grid[2], 1, 2, device=device)

    def head(self, x: Tensor, t_emb: Tensor) -> Tensor:
        return x[..., :CHANNELS]

    def unpatchify(self, values: Tensor, grid: tuple[int, int, int]) -> Tensor:
        frames, rows, columns = grid
        return rearrange(values, "b (t h w) c -> b c t h w", t=frames, h=rows, w=columns)


class FakeVAE(nn.Module):
    """Latents are the brightness of 8x8 pixels of every fourth frame, the same in all channels; decoding repeats it."""

    spatial_factor = 8
    temporal_factor = 4
    z_dim = CHANNELS

    def encode(self, video: Tensor, **options: object) -> Tensor:
        """(b 3 4k+1 8h 8w) -> (b c k+1 h w)."""
        grey = reduce(video[:, :, ::4], "b c t (h p) (w q) -> b 1 t h w", "mean", p=8, q=8)
        return repeat(grey, "b 1 t h w -> b c t h w", c=CHANNELS)

    def decode(self, latents: Tensor, **options: object) -> Tensor:
        """(b c k+1 h w) -> (b 3 4k+1 8h 8w) in [-1, 1]."""
        video = repeat(latents.mean(dim=1), "b t h w -> b c (t f) (h p) (w q)", c=3, f=4, p=8, q=8)
        return video[:, :, 3:].clamp(-1, 1)

    def decode_frames(self, latents: Tensor, latents_per_pass: int = 1) -> Iterator[Tensor]:
        """The video of `decode` in groups: frame 0, then 4 `latents_per_pass` frames."""
        video = self.decode(latents)
        yield video[:, :, :1]
        yield from video[:, :, 1:].split(4 * latents_per_pass, dim=2) if video.shape[2] > 1 else ()


class FakeAudioEncoder(nn.Module):
    """A feature row is the mean of its samples, so it knows nothing of others. `lengths` keeps the rows asked for."""

    feature_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.lengths: list[int] = []

    def forward(self, samples: Tensor, rows: int) -> Tensor:
        """(b n) -> (b rows 1)."""
        self.lengths.append(rows)
        return functional.adaptive_avg_pool1d(samples[:, None], rows).transpose(1, 2)


class FakeAudioAdapter(nn.Module):
    """Every entry block of a latent frame gets the last of the frame's rows. `calls` counts."""

    audio_in_dim = 1
    entry_blocks = range(1, 3)

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, rows: Tensor) -> Tensor:
        """(b 4k+1 1) -> (b p k+1 1), which fits tokens of any width."""
        self.calls += 1
        return repeat(rows[:, ::4], "b t 1 -> b p t 1", p=len(self.entry_blocks))
