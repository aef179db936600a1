"""The causal video VAE of Wan 2.1: pixels (b 3 1+4k 8h 8w) in [-1, 1] <-> latents (b 16 1+k h w).

    vae = WanVAE(dim=96, z_dim=16, dim_mult=(1, 2, 4, 4), num_res_blocks=2, attn_scales=(),
                 temporal_downsample=(False, True, True), latent_mean=..., latent_std=...)
    latents = vae.encode(video)
    video = vae.decode(latents)

The file reads from the outside in: `WanVAE`, what it shares with other causal VAEs (`CausalVAE`), its `Encoder` and
`Decoder`, the blocks of these, and last the causal convolution with its cache. A video passes through in groups of
frames; what a convolution needs of the frames before is in a `CausalCache` that belongs to the call. The groups change
time and memory, never the result.

Where `omniavatar.models.kernels` fit, they compute causal and upsampling convolutions, shortcuts, and norms with SiLU.
Architecture: Wan technical report, https://arxiv.org/abs/2503.20314, section 4.1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omniavatar.models import kernels
from omniavatar.models.attention import sdpa
from omniavatar.models.tiling import Tiling, map_tiles


class CausalVAE(nn.Module):
    """Encode and decode videos; latents are normalised per channel with `latent_mean` and `latent_std`.

    encoder: (frames (b 3 t h w), cache) -> moments; decoder: (latents, cache) -> frames; both are called with groups of
    frames, in order.
    Weights decide the arithmetic: inputs are cast to their dtype, results come back in the dtype of the input.
    `spatial_factor` and `temporal_factor` are pixels and frames per latent pixel and latent frame (8 and 4 in Wan 2.1).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        z_dim: int,
        spatial_factor: int,
        temporal_factor: int,
        latent_mean: Sequence[float],
        latent_std: Sequence[float],
    ) -> None:
        super().__init__()
        if not len(latent_mean) == len(latent_std) == z_dim:
            raise ValueError(
                f"latent_mean and latent_std have {len(latent_mean)} and {len(latent_std)} entries; "
                f"give one for each of the {z_dim} latent channels"
            )
        self.z_dim = z_dim
        self.spatial_factor = spatial_factor
        self.temporal_factor = temporal_factor
        self.latent_mean = tuple(latent_mean)
        self.latent_std = tuple(latent_std)
        self.encoder = encoder
        self.conv1 = nn.Conv3d(2 * z_dim, 2 * z_dim, 1)
        self.conv2 = nn.Conv3d(z_dim, z_dim, 1)
        self.decoder = decoder

    def encode(self, video: Tensor, tiling: Tiling | None = None, latents_per_pass: int = 1) -> Tensor:
        """Video (b 3 1+4k 8h 8w) in [-1, 1] -> normalised posterior mean (b z 1+k h w)."""
        self._check_video(video)
        if tiling is None:
            mean = self._encode_passes(video, latents_per_pass)
        else:
            mean = map_tiles(
                lambda tile: self._encode_passes(tile, latents_per_pass),
                video,
                tiling,
                latent_size=(video.shape[3] // self.spatial_factor, video.shape[4] // self.spatial_factor),
                in_scale=self.spatial_factor,
                out_scale=1,
            )
        shift, scale = self._statistics(mean)
        return ((mean - shift) / scale).to(video.dtype)

    def decode(
        self,
        latents: Tensor,
        tiling: Tiling | None = None,
        latents_per_pass: int = 1,
        history: MutableMapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Normalised latents (b z 1+k h w) -> video (b 3 1+4k 8h 8w), clamped to [-1, 1] after blending.

        history: see `decode_frames`; every tile has its own.
        """
        if tiling is None:
            return torch.cat(list(self.decode_frames(latents, latents_per_pass, history)), dim=2)
        self._check_latents(latents)
        numbers = itertools.count()

        def decode_tile(tile: Tensor) -> Tensor:
            passes = self._decode_passes(tile, latents_per_pass, history, f"tile{next(numbers)}.")
            return torch.cat(list(passes), dim=2)

        video = map_tiles(
            decode_tile,
            latents,
            tiling,
            latent_size=(latents.shape[3], latents.shape[4]),
            in_scale=1,
            out_scale=self.spatial_factor,
        )
        return video.clamp_(-1, 1).to(latents.dtype)

    def decode_frames(
        self, latents: Tensor, latents_per_pass: int = 1, history: MutableMapping[str, Tensor] | None = None
    ) -> Iterator[Tensor]:
        """The video of `decode` without tiles, in order, group by group: frame 0, then 4 `latents_per_pass` frames.

        history: what the convolutions remember of the latents before these, by name; empty at the beginning of a video.
            When the last group is made it holds what the latents after these need. With a past, every latent frame
            stands for 4 frames, so that a video that is decoded in pieces is the one that is decoded at once.
        """
        self._check_latents(latents)
        passes = self._decode_passes(latents, latents_per_pass, history)
        return (frames.clamp_(-1, 1).to(latents.dtype) for frames in passes)

    def moments(self, video: Tensor, latents_per_pass: int = 1) -> Tensor:
        """Video -> posterior mean and log-variance (b 2z 1+k h w), not normalised; for training."""
        cache = CausalCache()
        groups = frame_groups(video.shape[2], latents_per_pass * self.temporal_factor)
        parts = [self.conv1(self.encoder(video[:, :, group].to(self._dtype), cache)) for group in groups]
        return torch.cat(parts, dim=2)

    def frames(self, latents: Tensor, latents_per_pass: int = 1) -> Tensor:
        """Latents (b z 1+k h w), not normalised -> video (b 3 1+4k 8h 8w), not clamped; for training."""
        z, cache = self.conv2(latents.to(self._dtype)), CausalCache()
        groups = frame_groups(z.shape[2], latents_per_pass)
        return torch.cat([self.decoder(z[:, :, group], cache) for group in groups], dim=2)

    def _encode_passes(self, video: Tensor, latents_per_pass: int) -> Tensor:
        """Video -> posterior mean (b z 1+k h w), not normalised."""
        return self.moments(video, latents_per_pass)[:, : self.z_dim]

    def _decode_passes(
        self,
        latents: Tensor,
        latents_per_pass: int,
        history: MutableMapping[str, Tensor] | None = None,
        prefix: str = "",
    ) -> Iterator[Tensor]:
        """Normalised latents -> groups of frames, neither clamped nor cast. prefix: of the names in the history."""
        shift, scale = self._statistics(latents)
        z = self.conv2((latents * scale + shift).to(self._dtype))
        cache = CausalCache()
        goes_on = history is not None and cache.restore(self.decoder, history, prefix)
        for group in frame_groups(z.shape[2], latents_per_pass, first=0 if goes_on else 1):
            frames = self.decoder(z[:, :, group], cache)
            if history is not None and group.stop == z.shape[2]:
                history.update(cache.named(self.decoder, prefix))
            yield frames

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, each (z 1 1 1), at least in float32."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        mean, std = torch.tensor((self.latent_mean, self.latent_std), dtype=dtype, device=like.device)
        return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)

    @property
    def _dtype(self) -> torch.dtype:
        return self.conv1.weight.dtype

    def _check_video(self, video: Tensor) -> None:
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"a video is (batch, 3, frames, height, width), not {tuple(video.shape)}")
        frames, height, width = video.shape[2:]
        if height % self.spatial_factor or width % self.spatial_factor:
            raise ValueError(
                f"a video of height {height} and width {width} cannot be encoded: "
                f"both must be multiples of {self.spatial_factor}; crop or resize it first"
            )
        if frames < 1 or (frames - 1) % self.temporal_factor:
            raise ValueError(
                f"a video of {frames} frames cannot be encoded: give 1 + {self.temporal_factor} k frames, "
                f"for example {max(0, frames - 1) // self.temporal_factor * self.temporal_factor + 1}"
            )

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.z_dim or latents.shape[2] == 0:
            raise ValueError(
                f"latents are (batch, {self.z_dim}, frames, height, width) with a frame or more, "
                f"not {tuple(latents.shape)}"
            )


class WanVAE(CausalVAE):
    """The VAE of Wan 2.1: 8x8 pixels and 4 frames a latent."""

    def __init__(
        self,
        *,
        dim: int,
        z_dim: int,
        dim_mult: Sequence[int],
        num_res_blocks: int,
        attn_scales: Sequence[float],
        temporal_downsample: Sequence[bool],
        latent_mean: Sequence[float],
        latent_std: Sequence[float],
    ) -> None:
        check_levels(temporal_downsample, dim_mult)
        widths = [dim * factor for factor in dim_mult]
        super().__init__(
            Encoder(dim, widths, 2 * z_dim, num_res_blocks, attn_scales, temporal_downsample),
            Decoder(widths[::-1], z_dim, num_res_blocks, attn_scales, temporal_downsample[::-1]),
            z_dim=z_dim,
            spatial_factor=2 ** len(temporal_downsample),
            temporal_factor=2 ** sum(temporal_downsample),
            latent_mean=latent_mean,
            latent_std=latent_std,
        )


def check_levels(temporal_downsample: Sequence[bool], dim_mult: Sequence[int]) -> None:
    """Between two levels there is one step, which halves the frames or does not."""
    if len(temporal_downsample) != len(dim_mult) - 1:
        raise ValueError(
            f"temporal_downsample has {len(temporal_downsample)} entries for {len(dim_mult)} levels in dim_mult; "
            f"give one for every step between two levels, {len(dim_mult) - 1}"
        )


def frame_groups(length: int, group: int, first: int = 1) -> Iterator[slice]:
    """Frame 0 alone, then `group` frames at a time. first: how many frames are alone, 0 if there is a past."""
    if group < 1:
        raise ValueError(f"latents_per_pass must be 1 or more, not {group}")
    if first:
        yield slice(0, first)
    for start in range(first, length, group):
        yield slice(start, min(start + group, length))


class Encoder(nn.Module):
    """Frames (b 3 t 8h 8w) -> moments (b out_dim t/4 h w); frame 0 alone gives latent frame 0.

    `dim` are the channels after the first convolution, `widths` those of the levels, from the finest to the coarsest.
    """

    def __init__(
        self,
        dim: int,
        widths: Sequence[int],
        out_dim: int,
        num_res_blocks: int,
        attn_scales: Sequence[float],
        temporal_downsample: Sequence[bool],
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = dim
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                layers.append(ResidualBlock(channels, width))
                if 0.5**level in attn_scales:
                    layers.append(AttentionBlock(width))
                channels = width
            if level < len(temporal_downsample):
                layers.append(Downsample(width, temporal=temporal_downsample[level]))

        self.conv1 = CausalConv3d(3, dim, (3, 3, 3))
        self.downsamples = CausalStack(layers)
        self.middle = middle(channels)
        self.head = head(channels, out_dim)

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        x = self.conv1(x, cache)
        x = self.downsamples(x, cache)
        x = self.middle(x, cache)
        moments: Tensor = self.head(x, cache)
        return moments


class Decoder(nn.Module):
    """Latents (b z t h w) -> frames (b 3 4t 8h 8w); latent frame 0 alone gives frame 0.

    `widths` are the channels of the levels, from the coarsest to the finest.
    """

    def __init__(
        self,
        widths: Sequence[int],
        z_dim: int,
        num_res_blocks: int,
        attn_scales: Sequence[float],
        temporal_upsample: Sequence[bool],
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = widths[0]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks + 1):
                layers.append(ResidualBlock(channels, width))
                # The official decoder counts scales from one level finer than the encoder; files follow it.
                if 2.0 ** (level - len(widths) + 2) in attn_scales:
                    layers.append(AttentionBlock(width))
                channels = width
            if level < len(temporal_upsample):
                layers.append(Upsample(width, width // 2, temporal=temporal_upsample[level]))
                channels = width // 2

        self.conv1 = CausalConv3d(z_dim, widths[0], (3, 3, 3))
        self.middle = middle(widths[0])
        self.upsamples = CausalStack(layers)
        self.head = head(channels, 3)

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        x = self.conv1(x, cache)
        x = self.middle(x, cache)
        x = self.upsamples(x, cache)
        frames: Tensor = self.head(x, cache)
        return frames


def middle(dim: int) -> CausalStack:
    """The coarsest level, the only one with attention."""
    return CausalStack([ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim)])


def head(dim: int, out_dim: int) -> CausalStack:
    """Norm, activation and the last convolution."""
    return CausalStack([NormSiLU(dim), nn.Identity(), CausalConv3d(dim, out_dim, (3, 3, 3))])


class ResidualBlock(nn.Module):
    """x + two causal convolutions, each after norm and activation.

    Layers that compute nothing keep the indices of the others, which are in the names of their weights.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.residual = CausalStack(
            [
                NormSiLU(in_dim),
                nn.Identity(),
                CausalConv3d(in_dim, out_dim, (3, 3, 3)),
                NormSiLU(out_dim),
                nn.Identity(),
                nn.Identity(),  # the dropout of the training code
                CausalConv3d(out_dim, out_dim, (3, 3, 3)),
            ]
        )
        self.shortcut = PixelConv(in_dim, out_dim) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        residual: Tensor = self.residual(x, cache)
        shortcut: Tensor = self.shortcut(x)
        return residual + shortcut


class AttentionBlock(nn.Module):
    """x + single-head self-attention over the pixels of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, axes=2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + per_frame(self.attend, x)

    def attend(self, x: Tensor) -> Tensor:
        """Frames (n c h w) -> (n c h w)."""
        q, k, v = rearrange(self.to_qkv(self.norm(x)), "n (three c) h w -> three n (h w) 1 c", three=3)
        attended = rearrange(sdpa(q, k, v), "n (h w) 1 c -> n c h w", h=x.shape[2])
        projected: Tensor = self.proj(attended)
        return projected


class Downsample(nn.Module):
    """Half the height and width and, if `temporal`, half the frames; frame 0 is passed on as it is."""

    def __init__(self, dim: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        x = per_frame(self.resample, x)
        return x if self.time_conv is None else self.halve_frames(self.time_conv, x, cache)

    @staticmethod
    def halve_frames(time_conv: CausalConv3d, x: Tensor, cache: CausalCache) -> Tensor:
        """(b c 2t h w) -> (b c t h w), except for frame 0."""
        if time_conv not in cache:
            cache.start(time_conv, x)
            return x
        halved: Tensor = time_conv(x, cache)
        return halved


class Upsample(nn.Module):
    """Twice the height and width and, if `temporal`, twice the frames.

    Frame 0 is neither doubled nor seen by the frames after it: the history of the temporal convolution is zeros.
    """

    def __init__(self, dim: int, out_dim: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), UpsampleConv(dim, out_dim))
        self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        if self.time_conv is not None:
            x = self.double_frames(self.time_conv, x, cache)
        return per_frame(self.resample, x)

    @staticmethod
    def double_frames(time_conv: CausalConv3d, x: Tensor, cache: CausalCache) -> Tensor:
        """(b c t h w) -> (b c 2t h w), except for frame 0."""
        if time_conv not in cache:
            cache.start(time_conv, torch.zeros_like(x))
            return x
        pairs: Tensor = time_conv(x, cache)
        return rearrange(pairs, "b (two c) t h w -> b c (t two) h w", two=2)


class ChannelNorm(nn.Module):
    """x / max(|x|, 1e-12) * sqrt(channels) * gamma, |x| over the channels; `axes` follow the channel axis."""

    def __init__(self, dim: int, *, axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gamma * math.sqrt(x.shape[1])
        return F.normalize(x, dim=1, eps=1e-12) * scale


class NormSiLU(ChannelNorm):
    """The norm, and SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        if kernels.fit(x):
            return kernels.norm_silu(x, self.gamma.flatten())
        return F.silu(super().forward(x), inplace=True)


class UpsampleConv(nn.Conv2d):
    """A 3x3 convolution of frames whose pixels count twice in both directions: (n c h w) -> (n d 2h 2w)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not kernels.fit(x):
            return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest-exact"))
        video = rearrange(x, "n c h w -> 1 c n h w")
        return rearrange(kernels.convolve(video, self.weight.unsqueeze(2), self.bias, scale=2), "1 c n h w -> n c h w")


class PixelConv(nn.Conv3d):
    """A linear layer for every pixel of a video (b c t h w)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return kernels.convolve(x, self.weight, self.bias) if kernels.fit(x) else super().forward(x)


class CausalStack(nn.ModuleList):
    """Layers one after another; those that look back in time get the cache."""

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        for layer in self:
            x = layer(x, cache) if isinstance(layer, LOOKS_BACK) else layer(x)
        return x


class CausalConv3d(nn.Conv3d):
    """A convolution that sees the present and the past: frame t of the result depends on no later frame.

    `history` is the number of earlier frames that the first frame of a group needs.
    """

    def __init__(
        self, in_dim: int, out_dim: int, kernel_size: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        around = (kernel_size[1] // 2, kernel_size[2] // 2)
        super().__init__(in_dim, out_dim, kernel_size, stride=stride, padding=(0, *around))
        self.around = around
        self.history = kernel_size[0] - stride[0]

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:  # type: ignore[override]  # the past is an argument
        if x.shape[2] == 1 and self not in cache and self.stride[0] == 1:
            return self._first_frame(x, cache)
        past = cache.replace(self, x)
        if self.stride[0] == 1 and kernels.fit(x):
            return kernels.convolve(x, self.weight, self.bias, past)
        return super().forward(torch.cat((past, x), dim=2))

    def _first_frame(self, x: Tensor, cache: CausalCache) -> Tensor:
        """The same for frame 0 alone (b c 1 h w): what lies before it is zero, so only the present counts."""
        cache.start(self, x)
        if kernels.fit(x):
            return kernels.convolve(x, self.weight[:, :, -1:], self.bias)
        return F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, padding=self.around).unsqueeze(2)


class CausalCache:
    """The last input frames of every causal convolution: all that the next group of frames needs of those before.

    One object belongs to one pass over one video and is dropped with it; `named` and `restore` hand its content on.
    """

    def __init__(self) -> None:
        self._past: dict[CausalConv3d, Tensor] = {}

    def __contains__(self, conv: CausalConv3d) -> bool:
        return conv in self._past

    def named(self, network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
        """The past of the convolutions of a network, by their names in it with a prefix."""
        convolutions = ((name, module) for name, module in network.named_modules() if module in self._past)
        return {f"{prefix}{name}": self._past[module] for name, module in convolutions}

    def restore(self, network: nn.Module, past: Mapping[str, Tensor], prefix: str = "") -> bool:
        """Take up what `named` has given; False if there is nothing of this prefix."""
        for name, module in network.named_modules():
            if isinstance(module, CausalConv3d) and f"{prefix}{name}" in past:
                self._past[module] = past[f"{prefix}{name}"]
        return bool(self._past)

    def start(self, conv: CausalConv3d, frames: Tensor) -> None:
        """Let `frames` (b c t h w) be the past of `conv`; before them were zeros."""
        missing = max(0, conv.history - frames.shape[2])
        # A copy: a view would keep the whole group of frames alive.
        recent = frames[:, :, -conv.history :]
        self._past[conv] = F.pad(recent, (0, 0, 0, 0, missing, 0)) if missing else recent.clone()

    def replace(self, conv: CausalConv3d, frames: Tensor) -> Tensor:
        """The past of `conv`, zeros at the beginning (b c history h w); from now on `frames` (b c t h w) end it."""
        if conv not in self:
            self.start(conv, torch.zeros_like(frames[:, :, :1]))
        past = self._past[conv]
        kept = max(0, conv.history - frames.shape[2])
        self.start(conv, torch.cat((past[:, :, -kept:], frames), dim=2) if kept else frames)
        return past


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer for images (n c h w) to every frame of `x` (b c t h w)."""
    frames = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


LOOKS_BACK = (CausalConv3d, ResidualBlock, Downsample, Upsample)
