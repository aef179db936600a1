"""What Wan 2.2 Animate (arXiv:2509.14055) has beside its transformer: layers for the pose and for the face.

    adapter = AnimateAdapter(dim=5120, patch_size=(1, 2, 2), pose_in_dim=16, motion_style_dim=512, motion_dim=20,
                             face_encoder_width=1024, face_tokens=4, face_heads=40, face_layers=8, face_every=5)
    pose = adapter.pose(latents)                        # (1 16 t h w) -> (1 t n 5120), added to the tokens
    faces = adapter.face(pictures)                      # (1 3 4t-3 512 512) -> (1 t+1 5 5120)
    x = x + adapter.expression(0, x, faces, sees)       # (1 s 5120): after block 0

The transformer itself is an `omniavatar_i2v.image_dit.ImageDiT`; both lie in one file, whose names the attributes here
have. Letters in shapes: b batch, f pictures, t latent frames, s tokens, n tokens of a frame, k tokens of a face,
d model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from omniavatar.sdk import CausalConv1d, Grid, RMSNorm, check_patch_size

MOTION_CHANNELS = (32, 64, 128, 256, 512, 512, 512, 512)
"""Of the published motion encoder, from pictures of 512x512 to maps of 4x4."""
LAST_MAP = 4
"""Rows and columns of the last map of the motion encoder."""
PICTURES_PER_PASS = 8
SLOPE = 0.2
NORM_EPS = 1e-6


class AnimateAdapter(nn.Module):
    """All layers of Animate that an image-to-video transformer does not have.

    motion_channels: of the maps of the motion encoder, each of half the size of the one before; None: as published.
    motion_style_dim, motion_dim: width of a motion code, and how many directions it is made of.
    face_layers: attentions to the face, behind every `face_every`-th block from the first one on.
    Raises ValueError for numbers that do not go together.
    """

    def __init__(  # noqa: PLR0913 - the numbers of a published configuration
        self,
        *,
        dim: int,
        patch_size: Grid,
        pose_in_dim: int,
        motion_style_dim: int,
        motion_dim: int,
        face_encoder_width: int,
        face_tokens: int,
        face_heads: int,
        face_layers: int,
        face_every: int,
        motion_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if face_heads < 1 or dim % face_heads:
            raise ValueError(f"dim {dim} does not divide into face_heads {face_heads}")
        if motion_dim > motion_style_dim:
            raise ValueError(f"motion_dim {motion_dim} is more than motion_style_dim {motion_style_dim}")
        patch_size = check_patch_size(patch_size)
        channels = tuple(motion_channels or MOTION_CHANNELS)
        self.dim, self.face_layers, self.face_every = dim, face_layers, face_every
        self.face_size = LAST_MAP * 2 ** (len(channels) - 1)
        self.pose_patch_embedding = nn.Conv3d(pose_in_dim, dim, kernel_size=patch_size, stride=patch_size)
        self.motion_encoder = MotionEncoder(channels, motion_style_dim, motion_dim)
        self.face_encoder = FaceEncoder(motion_style_dim, face_encoder_width, face_tokens, dim)
        self.face_adapter = FaceAdapter(dim, face_heads, face_layers)

    @property
    def last_block(self) -> int:
        """The last block behind which the tokens attend to the face."""
        return (self.face_layers - 1) * self.face_every

    def pose(self, latents: Tensor) -> Tensor:
        """Latents of drawn poses (b c t h w) -> what is added to the tokens of each frame (b t n d)."""
        patches: Tensor = self.pose_patch_embedding(latents.to(self.pose_patch_embedding.weight.dtype))
        return rearrange(patches, "b d t h w -> b t (h w) d")

    def codes(self, pictures: Tensor) -> Tensor:
        """Pictures of a face (b 3 f size size) in [-1, 1] -> motion codes (b f c)."""
        frames = rearrange(pictures, "b c f h w -> (b f) c h w").split(PICTURES_PER_PASS)
        codes = torch.cat([self.motion_encoder(some) for some in frames])
        return rearrange(codes, "(b f) c -> b f c", b=len(pictures))

    def face(self, pictures: Tensor) -> Tensor:
        """Pictures of a face (b 3 4t-3 size size) in [-1, 1] -> its tokens (b t+1 k d).

        The reference picture, a frame in front of the video, has a face of zeros.
        """
        tokens = self.face_encoder(self.codes(pictures.to(self.pose_patch_embedding.weight.dtype)))
        return functional.pad(tokens, (0, 0, 0, 0, 1, 0))

    def layer(self, block: int) -> int | None:
        """The attention to the face that belongs behind a block, if there is one."""
        return None if block % self.face_every or block > self.last_block else block // self.face_every

    def expression(self, layer: int, x: Tensor, faces: Tensor, sees: Tensor) -> Tensor:
        """What tokens (b s d) make of the faces (b t k d) that they see (s t*k, bool): (b s d)."""
        residual: Tensor = self.face_adapter.fuser_blocks[layer](x, rearrange(faces, "b t k d -> b (t k) d"), sees)
        return residual


# From pictures to motion codes --------------------------------------------------------------------------------------


class MotionEncoder(nn.Module):
    """What a face does, apart from whose it is: a code made of few learned directions (LIA, arXiv:2203.09043)."""

    def __init__(self, channels: Sequence[int], style_dim: int, motion_dim: int) -> None:
        super().__init__()
        self.enc = MotionCoordinates(channels, style_dim, motion_dim)
        self.dec = MotionDirections(style_dim, motion_dim)

    def forward(self, pictures: Tensor) -> Tensor:
        """(b 3 size size) -> (b style_dim)."""
        code: Tensor = self.dec(self.enc(pictures))
        return code


class MotionCoordinates(nn.Module):
    """How far a face goes in every direction."""

    def __init__(self, channels: Sequence[int], style_dim: int, motion_dim: int) -> None:
        super().__init__()
        self.net_app = PictureEncoder(channels, style_dim)
        widths = [style_dim] * 5 + [motion_dim]
        self.fc = nn.Sequential(*(ScaledLinear(*pair) for pair in pairwise(widths)))

    def forward(self, pictures: Tensor) -> Tensor:
        """(b 3 size size) -> (b motion_dim)."""
        coordinates: Tensor = self.fc(self.net_app(pictures))
        return coordinates


class MotionDirections(nn.Module):
    """The directions, made orthonormal."""

    def __init__(self, style_dim: int, motion_dim: int) -> None:
        super().__init__()
        self.direction = nn.Linear(motion_dim, style_dim, bias=False)

    def forward(self, coordinates: Tensor) -> Tensor:
        """(b motion_dim) -> (b style_dim)."""
        # The signs of Q are part of the model: those of LAPACK's Householder reflections, which the CPU computes.
        basis, _ = torch.linalg.qr(self.direction.weight.float().cpu() + 1e-8)
        code: Tensor = coordinates @ basis.T.to(coordinates)
        return code


class PictureEncoder(nn.Module):
    """Residual convolutions that halve a picture until a map of 4x4 is left, which becomes one vector."""

    def __init__(self, channels: Sequence[int], style_dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Sequential(ScaledConv2d(3, channels[0], 1), BiasedActivation(channels[0])),
                *(HalvingBlock(*pair) for pair in pairwise(channels)),
                ScaledConv2d(channels[-1], style_dim, LAST_MAP),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b 3 size size) -> (b style_dim)."""
        for layer in self.convs:
            x = layer(x)
        return rearrange(x, "b c 1 1 -> b c")


class HalvingBlock(nn.Module):
    """Two convolutions beside a short cut, both of which halve the map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(ScaledConv2d(in_channels, in_channels, 3, padding=1), BiasedActivation(in_channels))
        self.conv2 = nn.Sequential(
            Blur(padding=2), ScaledConv2d(in_channels, out_channels, 3, stride=2), BiasedActivation(out_channels)
        )
        self.skip = nn.Sequential(Blur(padding=1), ScaledConv2d(in_channels, out_channels, 1, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b c' h/2 w/2)."""
        halved: Tensor = (self.conv2(self.conv1(x)) + self.skip(x)) / sqrt(2)
        return halved


class ScaledConv2d(nn.Module):
    """A convolution whose weights are stored with unit variance (equalised, Karras et al. 2018, arXiv:1710.10196)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b c' h' w')."""
        weight = self.weight / sqrt(self.weight[0].numel())
        return functional.conv2d(x, weight, stride=self.stride, padding=self.padding)


class ScaledLinear(nn.Module):
    """A linear layer whose weights are stored with unit variance, as in `ScaledConv2d`."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(b c) -> (b c')."""
        return functional.linear(x, self.weight / sqrt(self.weight.shape[1]), self.bias)


class BiasedActivation(nn.Module):
    """A bias for every channel, then a leaky ReLU that keeps the variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b c h w)."""
        return functional.leaky_relu(x + self.bias, SLOPE) * sqrt(2)


class Blur(nn.Module):
    """A smoothing filter in front of a stride (Zhang 2019, arXiv:1904.11486); a constant that lies in the file."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.kernel = nn.Parameter(torch.outer(row, row))

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b c h+2p-3 w+2p-3)."""
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, 1, -1, -1)
        return functional.conv2d(x, kernel, padding=self.padding, groups=channels)


# From motion codes to tokens ----------------------------------------------------------------------------------------


class FaceEncoder(nn.Module):
    """Motion codes -> for every latent frame k-1 tokens that know the frames before, and one that is always the same.

    Causal convolutions over time with strides 1, 2, 2.
    """

    def __init__(self, in_dim: int, width: int, tokens: int, dim: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.conv1_local = CausalConv1d(in_dim, width * tokens)
        self.conv2 = CausalConv1d(width, width, stride=2)
        self.conv3 = CausalConv1d(width, width, stride=2)
        self.out_proj = nn.Linear(width, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, codes: Tensor) -> Tensor:
        """(b 4t-3 c) -> (b t k d)."""
        x = rearrange(self.conv1_local(codes), "b f (k c) -> (b k) f c", k=self.tokens)
        x = self.conv2(activated(x))
        x = self.conv3(activated(x))
        x = rearrange(self.out_proj(activated(x)), "(b k) t d -> b t k d", k=self.tokens)
        return torch.cat([x, self.padding_tokens.expand_as(x[:, :, :1])], dim=2)


def activated(x: Tensor) -> Tensor:
    """Layer norm without weights, then SiLU."""
    return functional.silu(normed(x))


def normed(x: Tensor) -> Tensor:
    """Layer norm without weights."""
    return functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


# From tokens to what the video makes of them ------------------------------------------------------------------------


class FaceAdapter(nn.Module):
    """The attentions to the face."""

    def __init__(self, dim: int, num_heads: int, layers: int) -> None:
        super().__init__()
        self.fuser_blocks = nn.ModuleList(FaceAttention(dim, num_heads) for _ in range(layers))


class FaceAttention(nn.Module):
    """Attention of the video's tokens to those of the face in their own frame; norms per head, no positions."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.linear1_kv = nn.Linear(dim, 2 * dim)
        self.linear1_q = nn.Linear(dim, dim)
        self.linear2 = nn.Linear(dim, dim)
        self.q_norm = RMSNorm(dim // num_heads, NORM_EPS)
        self.k_norm = RMSNorm(dim // num_heads, NORM_EPS)

    def forward(self, x: Tensor, faces: Tensor, sees: Tensor) -> Tensor:
        """Tokens (b s d), those of the faces (b m d), which of them each token sees (s m, bool) -> (b s d)."""
        keys, values = self.linear1_kv(normed(faces)).chunk(2, dim=-1)
        q, k, v = (self._heads(part) for part in (self.linear1_q(normed(x)), keys, values))
        attended = functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=sees)
        output: Tensor = self.linear2(rearrange(attended, "b h s d -> b s (h d)"))
        return output

    def _heads(self, x: Tensor) -> Tensor:
        """(b s (h d)) -> (b h s d)."""
        return rearrange(x, "b s (h d) -> b h s d", h=self.num_heads)
