"""Training a causal video VAE on procedural talking heads: pictures first, then clips of growing length.

The loss is the absolute error of pixels and of their differences between neighbours (which keeps edges sharp), more
where the mouth is, and a small divergence of the latents from a normal distribution (Kingma and Welling 2013,
arXiv:1312.6114), which keeps them smooth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor, nn

from omniavatar.models.wan_vae import CausalConv3d, CausalVAE
from omniavatar.training.clips import Clip
from omniavatar.training.faces import Renderer
from omniavatar.training.gradients import Batch


class VaeSettings(BaseModel):
    """What is minimised, and on which lengths."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lengths: tuple[int, ...] = Field((1, 5, 17, 33, 49), min_length=1, description="frames of a clip, 4n+1, one drawn")
    frames: int = Field(64, ge=1, description="frames of a micro-batch, about")
    mouth: float = Field(4.0, ge=0, description="how much more an error in the mouth counts")
    edges: float = Field(1.0, ge=0, description="weight of differences between neighbouring pixels")
    motion: float = Field(0.5, ge=0, description="weight of differences between neighbouring frames")
    divergence: float = Field(1e-5, ge=0, description="weight of the latents' divergence from a normal distribution")


@dataclass(frozen=True)
class Footage:
    """Rendered clips: pictures (n t h w 3) uint8 and, for every picture, where the mouth is (n t 4), in pixels."""

    pictures: Tensor
    mouths: Tensor

    @classmethod
    def render(cls, seeds: Sequence[int], frames: int, size: int) -> Footage:
        """The clips of these numbers."""
        rendered = [render(Clip.from_seed(seed, frames), size) for seed in seeds]
        pictures, mouths = (np.stack(values) for values in zip(*rendered, strict=True))
        return cls(torch.from_numpy(pictures), torch.from_numpy(mouths))

    def to(self, device: torch.device | str) -> Footage:
        """The same on a device."""
        return Footage(self.pictures.to(device), self.mouths.to(device))

    def draw(self, draw: torch.Generator, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Random pieces: video (count 3 length h w) in [-1, 1] and a mask of the mouths (count 1 length h w)."""
        clips, total, height, width, _ = self.pictures.shape
        index = torch.randint(0, clips, (count,), generator=draw).to(self.pictures.device)
        start = torch.randint(0, total - length + 1, (count,), generator=draw).to(self.pictures.device)
        times = start[:, None] + torch.arange(length, device=self.pictures.device)
        video = self.pictures[index[:, None], times].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return video, box_mask(self.mouths[index[:, None], times], (height, width))[:, None]


def render(clip: Clip, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pictures (t size size 3) uint8 of a clip and its mouth boxes (t 4) float32."""
    renderer = Renderer(clip.who, size)
    boxes = [renderer.mouth_box(clip.performance.pose(n)) for n in range(len(clip.mouth))]
    return clip.pictures(size), np.array(boxes, dtype=np.float32)


def box_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """1 inside boxes (... 4) of left, top, right, bottom, 0 outside: (... h w)."""
    left, top, right, bottom = boxes[..., None, None].unbind(-3)
    rows = torch.arange(size[0], device=boxes.device)[:, None] + 0.5
    columns = torch.arange(size[1], device=boxes.device) + 0.5
    return ((rows > top) & (rows < bottom) & (columns > left) & (columns < right)).float()


class VaeTask:
    """A VAE that learns to give clips back; see `omniavatar.training.trainer.Task`."""

    def __init__(self, vae: CausalVAE, footage: Footage, settings: VaeSettings) -> None:
        self.vae: Any = vae.train().requires_grad_(True)
        self.footage = footage
        self.settings = settings

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.vae.named_parameters())

    def batch(self, draw: torch.Generator) -> Batch:
        """`video` and `mouths` as `Footage.draw` gives them, and the `noise` (b z t h w) of the latents."""
        settings = self.settings
        length = settings.lengths[int(torch.randint(0, len(settings.lengths), (), generator=draw))]
        video, mouths = self.footage.draw(draw, max(1, settings.frames // length), length)
        count, _, _, height, width = video.shape
        side = self.vae.spatial_factor
        shape = (count, self.vae.z_dim, 1 + length // self.vae.temporal_factor, height // side, width // side)
        return {"video": video, "mouths": mouths, "noise": torch.randn(shape, generator=draw).to(video.device)}

    def loss(self, batch: Batch) -> Tensor:
        settings, video, mouths = self.settings, batch["video"], batch["mouths"]
        length = video.shape[2]
        mean, log_variance = self.vae.moments(video, latents_per_pass=length).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean + torch.exp(0.5 * log_variance) * batch["noise"]
        made = self.vae.frames(latents, latents_per_pass=length).float()
        weight = 1 + settings.mouth * mouths
        error = made - video
        loss = (weight * error.abs()).mean()
        for axis, part in ((-1, settings.edges), (-2, settings.edges), (2, settings.motion)):
            if error.shape[axis] > 1:
                size = error.shape[axis] - 1
                loss = loss + part * (weight.narrow(axis, 0, size) * error.diff(dim=axis).abs()).mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        total: Tensor = loss + settings.divergence * divergence
        return total

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Half precision, with latents of mean 0 and deviation 1 for every channel."""
        state = {name: weight.detach().float() for name, weight in weights.items()}
        self.vae.load_state_dict(state)
        mean, deviation = latent_statistics(self.vae.eval(), self.footage)
        state = normalised(state, mean.cpu(), deviation.cpu())
        save_file({name: weight.half().contiguous() for name, weight in state.items()}, folder / "vae.safetensors")


@torch.no_grad()
def start_as_pictures(vae: nn.Module) -> None:
    """Let a VAE treat every frame as a picture of its own, so that clips begin where pictures have come to.

    Temporal kernels see the present only; frames are dropped and repeated where there are fewer of them.
    """
    for module in vae.modules():
        if isinstance(module, CausalConv3d):
            module.weight[:, :, :-1] = 0
            if module.kernel_size[1] == 1:  # over time only
                once = torch.eye(module.in_channels, device=module.weight.device)
                module.weight[:, :, -1, 0, 0] = once.repeat(module.out_channels // module.in_channels, 1)
                if module.bias is not None:
                    module.bias.zero_()


@torch.inference_mode()
def latent_statistics(vae: Any, footage: Footage, clips: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every latent channel (z) over some clips."""
    length = (footage.pictures.shape[1] - 1) // 4 * 4 + 1
    latents = []
    for index in range(min(clips, len(footage.pictures))):
        video = footage.pictures[index : index + 1, :length].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        latents.append(vae.encode(video, latents_per_pass=length)[0].flatten(1))
    values = torch.cat(latents, dim=1).double()
    return values.mean(dim=1).float(), values.std(dim=1).float()


def normalised(state: Mapping[str, Tensor], mean: Tensor, deviation: Tensor) -> dict[str, Tensor]:
    """Weights of the same VAE whose latents are shifted by -mean and divided by deviation (z), channel by channel.

    The last layer of the encoder (`conv1`, means and log-variances) and the first of the decoder (`conv2`) change.
    """
    z = len(mean)
    weight, bias = state["conv1.weight"].cpu().clone(), state["conv1.bias"].cpu().clone()
    weight[:z] /= deviation.view(-1, 1, 1, 1, 1)
    bias[:z] = (bias[:z] - mean) / deviation
    bias[z:] -= 2 * deviation.log()
    first, first_bias = state["conv2.weight"].cpu(), state["conv2.bias"].cpu()
    changed = {
        "conv1.weight": weight,
        "conv1.bias": bias,
        "conv2.weight": first * deviation.view(1, -1, 1, 1, 1),
        "conv2.bias": first_bias + first.flatten(1) @ mean,
    }
    return {**{name: value.cpu() for name, value in state.items()}, **changed}
