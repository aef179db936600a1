"""What Wan 2.2 S2V (arXiv:2508.18621) has beside its transformer: layers for speech, motion, pose and kinds of tokens.

    adapter = S2VAdapter(dim=5120, in_dim=16, num_heads=40, eps=1e-6, patch_size=(1, 2, 2), cond_dim=16,
                         audio_dim=1024, audio_layers=25, num_audio_token=4, audio_inject_layers=(0, 4, 8, ...))
    speech = adapter.speech(features)               # (1 4t 25 1024) -> (1 t 6 5120)
    tokens, positions = adapter.motion(latents)     # (1 16 19 h w) -> (1 m 5120), (m 3)
    x = x + adapter.heard(0, x, speech)             # (1 t n 5120): after block 0

The transformer itself is a `WanDiT`; both lie in one file, whose names the attributes here have.
Letters in shapes: b batch, t latent frames, n tokens of a frame, h w latent rows and columns, d model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from omniavatar.sdk import CausalConv1d, CheckpointError, CrossAttention, Grid, check_patch_size, modulate, sdpa
from omniavatar_s2v.shared import MOTION_FRAMES

FRAMES_PER_LATENT = 4
MOTION_LATENTS = 19
HISTORY = ((1, 1), (2, 2), (16, 4))
"""Latent frames of the past from the newest to the oldest, and how much coarser their patches are than usual ones."""
ADAIN_EPS = 1e-5
"""Of the adaptive norms alone: the published model was trained with AdaLayerNorm of diffusers and its default."""
VIDEO, REFERENCE, MOTION = range(3)
"""Kinds of tokens, each with a learned vector."""


class S2VAdapter(nn.Module):
    """All layers of S2V that a text-to-video transformer does not have.

    audio_layers: hidden states of the audio encoder that are mixed. audio_inject_layers: the blocks after which the
    tokens of a frame attend to the speech of their frame.
    """

    def __init__(  # noqa: PLR0913 - the numbers of a published configuration
        self,
        *,
        dim: int,
        in_dim: int,
        num_heads: int,
        eps: float,
        patch_size: Grid,
        cond_dim: int,
        audio_dim: int,
        audio_layers: int,
        num_audio_token: int,
        audio_inject_layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not audio_inject_layers:
            raise CheckpointError(
                "which blocks of the S2V transformer hear the sound is not known; "
                "put the config.json of the checkpoint, with 'audio_inject_layers', beside its file"
            )
        patch_size = check_patch_size(patch_size)
        self.audio_dim, self.audio_layers = audio_dim, audio_layers
        self.inject_layers = tuple(audio_inject_layers)
        self.casual_audio_encoder = SpeechEncoder(dim, audio_dim, audio_layers, num_audio_token)
        self.audio_injector = AudioInjector(dim, num_heads, eps, len(self.inject_layers))
        self.cond_encoder = nn.Conv3d(cond_dim, dim, kernel_size=patch_size, stride=patch_size)
        self.frame_packer = FramePacker(dim, in_dim, patch_size)
        self.trainable_cond_mask = nn.Embedding(3, dim)

    def speech(self, features: Tensor) -> Tensor:
        """Hidden states for 4t video frames (b 4t layers audio_dim) -> tokens (b t k+2 d), see `SpeechEncoder`."""
        encoded: Tensor = self.casual_audio_encoder(features.to(self.cond_encoder.weight.dtype))
        return encoded

    def heard(self, entry: int, x: Tensor, speech: Tensor) -> Tensor:
        """What tokens (b t n d) make of the speech of their frame (b t k+2 d), after block `inject_layers[entry]`."""
        residual: Tensor = self.audio_injector(entry, x, speech)
        return residual

    def pose(self, latents: Tensor) -> Tensor:
        """Pose latents (b c t h w) -> what is added to the video's tokens (b t*n d)."""
        return tokens_of(self.cond_encoder, latents)

    def motion(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of the past (b c t h w), t at most 19 -> tokens (b m d), their positions (m 3)."""
        packed: tuple[Tensor, Tensor] = self.frame_packer(latents)
        return packed

    def kind(self, kind: int) -> Tensor:
        """The vector (d) that tokens of this kind carry."""
        return self.trainable_cond_mask.weight[kind]


# Speech -------------------------------------------------------------------------------------------------------------


class SpeechEncoder(nn.Module):
    """Hidden states at the video rate -> for every latent frame k+1 local tokens and, last, a global one.

    The layers are mixed by learned weights, w = silu(weights) / sum(silu(weights)); 73 copies of the first frame stand
    for the past, so that a latent frame sees its four frames and those before.
    """

    def __init__(self, dim: int, audio_dim: int, audio_layers: int, num_tokens: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((1, audio_layers, 1, 1), 0.01))
        self.encoder = SpeechConvolutions(audio_dim, dim, num_tokens)

    def forward(self, features: Tensor) -> Tensor:
        """(b 4t layers audio_dim) -> (b t k+2 d)."""
        frames = features.shape[1]
        if frames % FRAMES_PER_LATENT:
            raise ValueError(f"{frames} frames of speech do not fill latent frames of {FRAMES_PER_LATENT}")
        weights = functional.silu(self.weights)
        mixed = torch.einsum("b t l c, l -> b t c", features, (weights / weights.sum()).flatten())
        past = mixed[:, :1].expand(-1, MOTION_FRAMES, -1)
        tokens: Tensor = self.encoder(torch.cat([past, mixed], dim=1))
        return tokens[:, MOTION_LATENTS:]


class SpeechConvolutions(nn.Module):
    """Causal convolutions with strides 1, 2, 2 on two paths of the same later layers: k local tokens, one global."""

    def __init__(self, in_dim: int, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.conv1_local = CausalConv1d(in_dim, dim // 4 * num_tokens)
        self.conv1_global = CausalConv1d(in_dim, dim // 4)
        self.conv2 = CausalConv1d(dim // 4, dim // 2, stride=2)
        self.conv3 = CausalConv1d(dim // 2, dim, stride=2)
        self.final_linear = nn.Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(b 4t+1 in_dim) -> (b t+1 k+2 d): k local tokens, one that is the same for all, the global one."""
        local = rearrange(self.conv1_local(x), "b t (k c) -> (b k) t c", k=self.num_tokens)
        local = rearrange(self._later(local), "(b k) t d -> b t k d", k=self.num_tokens)
        overall = rearrange(self.final_linear(self._later(self.conv1_global(x))), "b t d -> b t 1 d")
        padding = self.padding_tokens.expand_as(overall)
        return torch.cat([local, padding, overall], dim=2)

    def _later(self, x: Tensor) -> Tensor:
        """The layers that both paths share: (b t d/4) -> (b t/4 d)."""
        later: Tensor = self.conv3(activated(self.conv2(activated(x))))
        return activated(later)


def activated(x: Tensor) -> Tensor:
    """Layer norm without weights, then SiLU."""
    return functional.silu(functional.layer_norm(x, x.shape[-1:], eps=1e-6))


class AudioInjector(nn.Module):
    """Cross-attention of a frame's tokens to its speech, for every block that hears it.

    The tokens are normed, with a shift and a scale that come from the global speech token (adaptive norm, as in
    arXiv:1703.06868), and attend to the local ones.
    """

    def __init__(self, dim: int, num_heads: int, eps: float, count: int) -> None:
        super().__init__()
        self.injector = nn.ModuleList(CrossAttention(dim, num_heads, eps) for _ in range(count))
        self.injector_adain_layers = nn.ModuleList(AdaptiveNorm(dim) for _ in range(count))

    def forward(self, entry: int, x: Tensor, speech: Tensor) -> Tensor:
        """Tokens (b t n d), speech (b t k+2 d) -> what is added to the tokens (b t n d)."""
        batch = x.shape[0]
        normed = self.injector_adain_layers[entry](x, speech[:, :, -1:])
        queries, local = (rearrange(part, "b t n d -> (b t) n d") for part in (normed, speech[:, :, :-1]))
        layer: Any = self.injector[entry]
        attended: Tensor = layer.output(sdpa(*layer.project(queries, local)))
        return rearrange(attended, "(b t) n d -> b t n d", b=batch)


class AdaptiveNorm(nn.Module):
    """Layer norm whose shift and scale, in this order, are a linear function of a condition."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (b t n d), condition (b t 1 d) -> (b t n d)."""
        shift, scale = self.linear(functional.silu(condition)).chunk(2, dim=-1)
        return modulate(functional.layer_norm(x, x.shape[-1:], eps=ADAIN_EPS), shift, scale)


# Motion -------------------------------------------------------------------------------------------------------------


class FramePacker(nn.Module):
    """The past as few tokens, the coarser the older (FramePack, arXiv:2504.12626): 1, 2 and 16 latent frames."""

    def __init__(self, dim: int, in_dim: int, patch_size: Grid) -> None:
        super().__init__()
        f, h, w = patch_size
        kernels = [(f * factor, h * factor, w * factor) for _, factor in HISTORY]
        self.patch_size = patch_size
        self.proj, self.proj_2x, self.proj_4x = (nn.Conv3d(in_dim, dim, kernel, kernel) for kernel in kernels)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(b c t h w) with t up to 19 -> tokens (b m d), newest frames first, and positions (m 3).

        Frames are counted backwards from the video's first one; rows and columns are those of usual tokens. Missing
        frames of the past are zeros.
        """
        height, width = latents.shape[-2] // self.patch_size[1], latents.shape[-1] // self.patch_size[2]
        past = functional.pad(latents, (0, 0, 0, 0, MOTION_LATENTS - latents.shape[2], 0))
        tokens, positions, end = [], [], 0
        for (frames, factor), projection in zip(HISTORY, (self.proj, self.proj_2x, self.proj_4x), strict=True):
            part = past[:, :, MOTION_LATENTS - end - frames : MOTION_LATENTS - end]
            tokens.append(tokens_of(projection, part))
            axes = [
                spread(-end - frames, frames, frames // (factor * self.patch_size[0])),
                *(spread(0, full, full // factor) for full in (height, width)),
            ]
            positions.append(torch.cartesian_prod(*axes))
            end += frames
        return torch.cat(tokens, dim=1), torch.cat(positions).to(latents.device)


def spread(start: int, size: int, count: int) -> Tensor:
    """`count` positions from `start` to the last of `size`, at equal distances, rounded towards zero: (count) int64."""
    return torch.from_numpy(np.linspace(start, start + size - 1, count).astype(np.int64))


def tokens_of(projection: nn.Conv3d, latents: Tensor) -> Tensor:
    """The patches of latents (b c t h w) as tokens (b s d), frames outermost."""
    patches: Tensor = projection(latents.to(projection.weight.dtype))
    return rearrange(patches, "b d f h w -> b (f h w) d")
