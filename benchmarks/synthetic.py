"""Work of the real size without files: networks of the true shapes with random weights, and random conditions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omniavatar.checkpoints.loading import build_on_meta
from omniavatar.checkpoints.names import matches
from omniavatar.checkpoints.registry import Registry
from omniavatar.engine.draft import Draft
from omniavatar.engine.outline import Length
from omniavatar.engine.scopes import Job, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.models.attention import Attention, sdpa
from omniavatar.testing import LatentFormat
from omniavatar.units import Prompt

ROWS = {"tiny": "omniavatar-test", "1.3b": "Wan2.1-T2V-1.3B", "14b": "Wan2.1-T2V-14B"}
AUDIO = {"audio_in_dim": 10752, "audio_hidden_size": 32}
TEXT_TOKENS = 512


class RandomModels:
    """OmniAvatar's transformer (33 input channels) and audio layers with random weights, made where they are wanted.

    size: a key of ROWS. with_vae: the VAE of Wan 2.1 as well, else only its format. blocks: fewer than the size has.
    """

    def __init__(self, size: str, *, with_vae: bool = False, blocks: int | None = None) -> None:
        rows = {row.name: row for row in Registry.builtin().rows}
        self.spec = rows[ROWS[size]].components["dit"]
        self.vae = rows["Wan2.1-VAE"].components["vae"] if with_vae else None
        self.blocks = blocks or self.spec.config["num_layers"]

    def __contains__(self, role: object) -> bool:
        return role in ("dit", "audio_adapter", "vae")

    def config(self, role: str) -> dict[str, Any]:
        """The numbers of the transformer, or of the audio layers that fit it."""
        dit = {**self.spec.config, "in_dim": 33, "num_layers": self.blocks}
        return dit if role == "dit" else {**AUDIO, "dim": dit["dim"], "num_layers": dit["num_layers"]}

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        """The network of this role."""
        return fill(self.skeleton(role, dtype=dtype, **constructor), device, dtype)

    def skeleton(self, role: str, *, dtype: torch.dtype, attention: Attention = sdpa, **_: Any) -> nn.Module:
        """The network of this role on the meta device."""
        if role == "dit":
            network = build_on_meta(self.spec.network or "", {**self.config(role), "attention": attention})
        elif role == "audio_adapter":
            network = build_on_meta("omniavatar.models.audio_adapter:AudioAdapter", self.config(role))
        elif role == "vae" and self.vae is not None:
            network = build_on_meta(self.vae.network or "", self.vae.config)
        else:
            network = LatentFormat()
        return network.to(dtype)

    def weights(
        self, role: str, patterns: Sequence[str], *, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Those weights of a role's network that `load` would make."""
        whole = self.skeleton(role, dtype=dtype)
        modules = {name.rpartition(".")[0] for name, _ in whole.named_parameters() if matches(name, patterns)}
        for module in modules:
            fill(whole.get_submodule(module), device, dtype)
        return {name: weight for name, weight in whole.named_parameters() if matches(name, patterns)}

    def beside(self, role: str, path: Path) -> Path:
        """The path as it is."""
        return path

    def tokenizer(self, role: str) -> None:
        """None lies in a file."""

    def adapters(self) -> Sequence[Any]:
        """No LoRA files."""
        return ()


def fill(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights that keep activations of order 1: normal by fan-in, ones for norms, zeros for biases."""
    network = network.to(dtype).to_empty(device=device)
    noise = torch.randn(2**20, generator=torch.Generator(device).manual_seed(0), device=device)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            repeat_into(parameter.detach(), noise * math.prod(parameter.shape[1:]) ** -0.5)
    return network.eval().requires_grad_(False)


def repeat_into(target: Tensor, values: Tensor) -> None:
    """Fill a tensor with values (n), again and again: billions of random numbers take minutes on a CPU."""
    flat = target.view(-1)
    whole = flat.numel() // values.numel() * values.numel()
    flat[:whole].view(-1, values.numel()).copy_(values.expand(whole // values.numel(), -1))
    flat[whole:].copy_(values[: flat.numel() - whole])


class RandomText(Prompt):
    """The prompt unit with random embeddings."""

    roles = ("dit",)

    @hookimpl(wrapper=True)
    def check_request(self, draft: Draft) -> Iterator[None]:
        """There is no tokenizer to look for."""
        yield

    @hookimpl
    def begin_job(self, job: Job) -> None:
        width = job.engine.model("dit").text_embedding[0].in_features
        for name in ("prompt_embedding", "negative_embedding"):
            job[name] = torch.randn(1, TEXT_TOKENS, width, device=job.engine.device, dtype=job.engine.dtype)


class RandomSound(PipelineUnit):
    """Random feature rows; it sets the length of the video."""

    name = "random-sound"
    provides = ("audio_rows",)

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    @hookimpl
    def plan_length(self) -> Length:
        return Length(self.frames)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        engine, shape = window.engine, (1, window.span.frames, AUDIO["audio_in_dim"])
        window["audio_rows"] = torch.randn(shape, device=engine.device, dtype=engine.dtype)


class RandomCondition(PipelineUnit):
    """The condition channels, random."""

    name = "random-condition"
    provides = ("condition",)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        latents: Tensor = window.latents
        window["condition"] = torch.randn(1, 17, *latents.shape[2:], device=latents.device)
