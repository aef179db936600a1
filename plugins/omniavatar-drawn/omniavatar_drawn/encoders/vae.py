"""Training a causal video VAE on procedural talking heads: pictures first, then clips.

    python -m omniavatar_drawn.encoders.vae out/vae --minutes 10

writes `out/vae/vae.safetensors`, the logs and checkpoints of both parts, and tells how well the VAE gives unseen clips
back. A run that was stopped goes on when it is started again.

The loss is the absolute error of pixels and of their differences between neighbours (which keeps edges sharp), more
where the mouth is, and a small divergence of the latents from a normal distribution (Kingma and Welling 2013,
arXiv:1312.6114), which keeps them smooth. Of clips the last frames pass through the VAE once more and must stay as they
are, so that no window of a long video begins with a jump.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omniavatar.models.wan_vae import CausalConv3d, CausalVAE, WanVAE
from omniavatar.training.gradients import Batch
from omniavatar.training.trainer import Report, Settings, Trainer
from omniavatar_drawn.faces import Renderer
from omniavatar_drawn.faces.clips import Clip

FILE = "vae.safetensors"
OVERLAP = 13
"""Frames that a window takes over from the one before."""


class VaeSettings(BaseModel):
    """What is minimised, and on which lengths."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lengths: tuple[int, ...] = Field((1, 5, 17, 33, 49), min_length=1, description="frames of a clip, 4n+1, one drawn")
    frames: int = Field(64, ge=1, description="frames of a micro-batch, about")
    mouth: float = Field(4.0, ge=0, description="how much more an error in the mouth counts")
    edges: float = Field(1.0, ge=0, description="weight of differences between neighbouring pixels")
    motion: float = Field(0.5, ge=0, description="weight of differences between neighbouring frames")
    again: float = Field(1.0, ge=0, description="weight of what changes when the last frames pass through once more")
    divergence: float = Field(1e-5, ge=0, description="weight of the latents' divergence from a normal distribution")


@dataclass(frozen=True)
class Footage:
    """Rendered clips: pictures (n t h w 3) uint8 and, for every picture, where the mouth is (n t 4), in pixels."""

    pictures: Tensor
    mouths: Tensor

    @classmethod
    def render(cls, seeds: Sequence[int], frames: int, size: int, workers: int = 1) -> Footage:
        """The babbling clips of these numbers."""
        draw = partial(rendered, frames=frames, size=size)
        if workers == 1:
            found = [draw(seed) for seed in seeds]
        else:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                found = pool.map(draw, seeds, chunksize=8)
        pictures, mouths = (np.stack(values) for values in zip(*found, strict=True))
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


def rendered(seed: int, frames: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pictures (t size size 3) uint8 of a clip and its mouth boxes (t 4) float32."""
    clip = Clip.babbling(seed, frames)
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
        if settings.again and length > OVERLAP:
            total = total + settings.again * self.change(made[:, :, -OVERLAP:])
        return total

    def change(self, frames: Tensor) -> Tensor:
        """How much frames that the VAE has made (b 3 t h w) change in it, as when a window begins with those before."""
        frames = frames.detach().clamp(-1, 1)
        mean = self.vae.moments(frames, latents_per_pass=frames.shape[2])[:, : self.vae.z_dim]
        back: Tensor = self.vae.frames(mean, latents_per_pass=frames.shape[2])
        return (back.float() - frames).abs().mean()

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Half precision, with latents of mean 0 and deviation 1 for every channel."""
        state = {name: weight.detach().float() for name, weight in weights.items()}
        self.vae.load_state_dict(state)
        mean, deviation = latent_statistics(self.vae.eval(), self.footage)
        state = normalised(state, mean.cpu(), deviation.cpu())
        save_file({name: weight.half().contiguous() for name, weight in state.items()}, folder / FILE)


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


CONFIG: dict[str, Any] = {
    "dim": 16,
    "z_dim": 16,
    "dim_mult": (1, 2, 4, 4),
    "num_res_blocks": 1,
    "attn_scales": (),
    "temporal_downsample": (False, True, True),
    "latent_mean": (0.0,) * 16,
    "latent_std": (1.0,) * 16,
}
"""The VAE of Wan 2.1 with a sixth of its width and half its blocks."""
HELD_OUT = 1000
"""Clips of numbers below this one are not trained on."""


@torch.inference_mode()
def fidelity(vae: WanVAE, footage: Footage, lengths: Sequence[int] = (1, 17, 49, 65)) -> dict[int, float]:
    """By length of a clip in frames: the peak signal-to-noise ratio of what comes back, dB."""
    device, found = next(vae.parameters()).device, {}
    for length in lengths:
        errors = []
        for clip in footage.pictures[:, :length]:
            video = clip[None].permute(0, 4, 1, 2, 3).to(device).float() / 127.5 - 1
            back = vae.decode(vae.encode(video, latents_per_pass=length), latents_per_pass=length)
            errors.append((back - video).square().mean())
        found[length] = round(float(-10 * torch.log10(torch.stack(errors).mean() / 4)), 2)
    return found


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--start", type=click.Path(exists=True, dir_okay=False), help="weights to begin clips with")
@click.option("--clips", default=2000, show_default=True, type=click.IntRange(2), help="to train on, of 65 frames each")
@click.option("--side", default=128, show_default=True, type=click.IntRange(16), help="pixels")
@click.option("--picture-steps", default=2200, show_default=True, type=click.IntRange(1), help="updates on pictures")
@click.option("--steps", default=8000, show_default=True, type=click.IntRange(1), help="updates on clips")
@click.option("--rate", default=1e-3, show_default=True, type=float, help="highest learning rate on clips")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="stop after this time; start again to go on")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="processes that draw clips")
@click.option("--tested", default=64, show_default=True, type=click.IntRange(1, HELD_OUT), help="unseen clips")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, ...")
def main(folder: Path, start: str | None, device: str, **options: Any) -> None:
    """Train the tiny VAE and write it into FOLDER."""
    torch.manual_seed(0)
    vae, footage = WanVAE(**CONFIG), Footage.render
    seeds = range(HELD_OUT, HELD_OUT + options["clips"])
    clips = footage(seeds, 65, options["side"], options["workers"]).to(device)
    deadline = time.monotonic() + 60 * (options["minutes"] or math.inf)
    if start is None:
        start_as_pictures(vae)
        settings = Settings(steps=options["picture_steps"], learning_rate=2e-3, warmup=200, ema=0.995, **FAST)
        pictures = VaeSettings(lengths=(1,), frames=48)
        if not learn(vae.to(device), clips, pictures, settings, folder / "pictures", deadline):
            return
    else:
        vae.load_state_dict({name: value.float() for name, value in load_file(start).items()})
    settings = Settings(steps=options["steps"], learning_rate=options["rate"], warmup=100, ema=0.998, **FAST)
    lengths = VaeSettings(lengths=(1, 17, 49), frames=68)
    if learn(vae.to(device), clips, lengths, settings, folder / "clips", deadline):
        held_out = footage(range(options["tested"]), 65, options["side"], options["workers"])
        vae.load_state_dict({name: value.float() for name, value in load_file(folder / "clips" / FILE).items()})
        os.replace(folder / "clips" / FILE, folder / FILE)
        click.echo(json.dumps(fidelity(vae.eval(), held_out)))


FAST: dict[str, Any] = {
    "schedule": "cosine",
    "final_rate": 0.02,
    "precision": "bf16",
    "cuda_graph": True,
    "weight_decay": 0.0,
    "save_every": 100_000,
    "log_every": 100,
}


def learn(
    vae: WanVAE, footage: Footage, lengths: VaeSettings, settings: Settings, folder: Path, deadline: float
) -> bool:
    """Train until the end or the deadline, leave the averaged weights in the VAE; returns whether it is the end."""
    left = max(0.01, (deadline - time.monotonic()) / 60)
    settings = settings.model_copy(update={"max_minutes": None if math.isinf(left) else left})
    device = next(vae.parameters()).device
    trainer = Trainer(VaeTask(vae, footage, lengths), settings, folder, device=device, listeners=[_tell])
    is_done = trainer.run()
    with torch.no_grad():
        for name, weight in trainer.result().items():
            trainer.parameters[name].copy_(weight)
    return is_done


def _tell(report: Report) -> None:
    if report.step % 500 == 0:
        click.echo(f"step {report.step}  loss {report.loss:.5f}  {report.seconds:.3f} s")


if __name__ == "__main__":
    main()
