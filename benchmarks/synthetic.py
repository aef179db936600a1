"""Work of the real size without files: networks of the true shapes with random weights, and random conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omniavatar.checkpoints.loading import build_on_meta
from omniavatar.checkpoints.registry import Registry
from omniavatar.engine.scopes import Job, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.models.audio_adapter import AudioAdapter
from omniavatar.testing import LatentFormat
from omniavatar.units import Audio, Prompt
from omniavatar.units.audio import framed

ROWS = {"tiny": "omniavatar-tiny", "1.3b": "Wan2.1-T2V-1.3B", "14b": "Wan2.1-T2V-14B"}
AUDIO = {"audio_in_dim": 10752, "audio_hidden_size": 32}
TEXT_TOKENS = 512


class RandomModels:
    """OmniAvatar's transformer (33 input channels) and audio layers with random weights, made where they are wanted.

    size: a key of ROWS. Other roles are filled with nothing.
    """

    def __init__(self, size: str) -> None:
        row = next(row for row in Registry.builtin().rows if row.name == ROWS[size])
        self.spec = row.components["dit"]

    def __contains__(self, role: object) -> bool:
        return role != "lora"

    def config(self, role: str) -> dict[str, Any]:
        """The numbers of the transformer, or of the audio layers that fit it."""
        dit = {**self.spec.config, "in_dim": 33}
        return dit if role == "dit" else {**AUDIO, "dim": dit["dim"], "num_layers": dit["num_layers"]}

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        """The network of this role."""
        if role == "dit":
            dit = build_on_meta(self.spec.network or "", {**self.config(role), **constructor})
            return fill(dit, device, dtype)
        if role == "audio_adapter":
            return fill(AudioAdapter(**self.config(role)), device, dtype)
        return LatentFormat() if role == "vae" else nn.Identity()

    def beside(self, role: str, path: Path) -> Path:
        """The path as it is."""
        return path

    def adapters(self) -> Sequence[Any]:
        """No LoRA files."""
        return ()


def fill(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights that keep activations of order 1: normal by fan-in, ones for norms, zeros for biases."""
    network = network.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            fan_in = math.prod(parameter.shape[1:])
            nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)
    return network.eval().requires_grad_(False)


class RandomText(Prompt):
    """The prompt unit with random embeddings."""

    @hookimpl
    def begin_job(self, job: Job) -> None:
        width = job.engine.model("dit").text_embedding[0].in_features
        for name in ("prompt_embedding", "negative_embedding"):
            job[name] = torch.randn(1, TEXT_TOKENS, width, device=job.engine.device, dtype=job.engine.dtype)


class RandomSound(Audio):
    """The audio unit with random feature rows; it sets the length of the video."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job.frames = self.frames

    @hookimpl
    def begin_window(self, window: Window) -> None:
        engine = window.engine
        rows = torch.randn(1, window.span.frames, AUDIO["audio_in_dim"], device=engine.device, dtype=engine.dtype)
        adapter = engine.model("audio_adapter")
        window["audio_residuals"] = framed(adapter(rows))
        window["audio_silence"] = framed(adapter(torch.zeros_like(rows)))


class RandomCondition(PipelineUnit):
    """The condition channels, random."""

    name = "random-condition"
    provides = ("condition",)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        latents: Tensor = window.latents
        window["condition"] = torch.randn(1, 17, *latents.shape[2:], device=latents.device)
