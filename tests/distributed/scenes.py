"""Videos that one rank and several make: small networks with random weights, and units that stand in for inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omniavatar.distributed.world import ALONE, World
from omniavatar.engine.engine import Engine
from omniavatar.engine.outline import Length, Outline
from omniavatar.engine.plan import Plan
from omniavatar.engine.scopes import Branch, Forward, Job, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.models import audio_adapter
from omniavatar.models.attention import Address, Attention, sdpa
from omniavatar.models.umt5 import UMT5Encoder
from omniavatar.models.wan_dit import WanBlock, WanDiT
from omniavatar.models.wan_vae import WanVAE
from omniavatar.testing import GivenLora, tiny
from omniavatar.testing.recorder import WindowRecorder
from omniavatar.units import (
    Audio,
    AudioAdapter,
    Euler,
    FixedFrames,
    Guidance,
    ReferenceImage,
    Schedule,
    Transformer,
    VaeDecode,
)
from tests.models.networks import noise, randomized, relative_error

HEADS = 4
FEATURES = 6
LAYERS = 4


class RandomModels:
    """The networks of the tiny model with random weights, the same ones in every process."""

    roles: tuple[str, ...] = ("dit", "vae", "text_encoder", "audio_encoder", "audio_adapter")

    def __contains__(self, role: object) -> bool:
        return role in self.roles

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        """A new network; the transformer takes the engine's attention."""
        network: nn.Module = build(role, **({"attention": constructor["attention"]} if role == "dit" else {}))
        return network

    def config(self, role: str) -> dict[str, Any]:
        """What the engine asks for: the heads of the transformer."""
        return {"num_heads": HEADS}

    def beside(self, role: str, path: Any) -> Any:
        return path

    def tokenizer(self, role: str) -> None:
        """None lies in a file."""

    def adapters(self) -> Sequence[Any]:
        """A LoRA that is stronger in the first half of the steps, for plans with the unit for it."""
        dim, layers = tiny.DIT["dim"], ("blocks.0.self_attn.q", "blocks.2.cross_attn.v")
        state = {f"{layer}.lora_A.weight": noise(3, dim, seed=21) for layer in layers}
        state |= {f"{layer}.lora_B.weight": noise(dim, 3, seed=22) for layer in layers}
        state |= {"blocks.1.diff_m": noise(1, 6, dim, seed=23) / 4, "head.diff_m": noise(1, 2, dim, seed=24) / 4}
        state |= {"blocks.1.self_attn.norm_q.diff": noise(dim, seed=25) / 4}
        return [GivenLora(state, strength=((0.0, 0.5, 1.0), (0.5, 1.0, -0.5)))]


def build(role: str, **constructor: Any) -> Any:
    """The network of this role."""
    classes: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
        "dit": (WanDiT, {**tiny.DIT, "num_heads": HEADS, "num_layers": LAYERS}),
        "vae": (WanVAE, tiny.VAE),
        "text_encoder": (UMT5Encoder, tiny.TEXT),
        "audio_encoder": (nn.Identity, {}),
        "audio_adapter": (audio_adapter.AudioAdapter, {**tiny.ADAPTER, "audio_in_dim": FEATURES, "num_layers": LAYERS}),
    }
    network, sizes = classes[role]
    return randomized(network(**sizes, **constructor))


class Texts(PipelineUnit):
    """A text of its own length for every branch, through the text encoder."""

    name = "texts"
    roles = ("text_encoder",)

    def __init__(self, **tokens: int) -> None:
        super().__init__()
        self.tokens = {"positive": 7, "no-audio": 4, "negative": 3, **tokens}

    @hookimpl
    def begin_job(self, job: Job) -> None:
        encoder = job.engine.model("text_encoder")
        for branch, count in self.tokens.items():
            ids = torch.arange(3, 3 + count)[None] * (1 + len(branch))
            job[f"text.{branch}"] = encoder(ids, torch.ones_like(ids))

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.conditions["text"] = forward.stacked(
            lambda branch: forward.network.embed_text(branch[f"text.{branch.name}"])
        )


class Voice(Audio):
    """The audio unit with random features instead of a sound."""

    frames: int

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job["audio_track"] = self

    @hookimpl
    def plan_length(self, video: Outline) -> Length:
        return Length(self.frames)

    def rows(self, start: int, stop: int, total: int) -> Tensor:
        """(stop-start, features)."""
        return noise(total + 1, FEATURES, seed=9)[start + 1 : stop + 1]


class Hints(PipelineUnit):
    """Per-token additions in the style of VACE: a control signal runs through a block of its own beside the tokens.

    It knows nothing of ranks: it passes what it makes for all tokens through `forward.shard`.
    """

    name = "hints"

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.bias = noise(frames + 1, tiny.DIT["dim"], seed=12)

    @hookimpl
    def setup(self, engine: Engine) -> None:
        sizes = {"dim": tiny.DIT["dim"], "ffn_dim": 64, "num_heads": HEADS, "eps": 1e-6}
        self.block = randomized(WanBlock(**sizes, attention=engine.attention), seed=11)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            frames, rows, columns = forward.grid
            control = forward.shard(noise(1, frames * rows * columns, tiny.DIT["dim"], seed=13))
            forward["hint"] = self.block(control + forward.x, forward.block_inputs(0))

    @hookimpl
    def after_block(self, forward: Forward, index: int) -> None:
        forward.x = forward.x + forward["hint"] + self.bias[forward.frame_index]


class TokenTimes(PipelineUnit):
    """A time step of its own for every token, smaller in earlier frames."""

    name = "token-times"

    @hookimpl
    def embed(self, forward: Forward) -> None:
        times = forward.step.timestep * (1 + forward.frame_index.double()) / 4
        forward.time, forward.t_mod = forward.network.embed_token_times(times[None])


class Causal(PipelineUnit):
    """In the block `index` a token sees none behind it; where heads are shared, the mask is over all tokens still."""

    name = "causal"
    index = 1

    @hookimpl
    def setup(self, engine: Engine) -> None:
        engine.attention.wrap_at(self.masked)

    def masked(self, inner: Attention, at: Address) -> Attention:
        if at.index != self.index:
            return inner
        return lambda q, k, v: sdpa(q, k, v, mask=torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril())


class Merged(PipelineUnit):
    """All branches in one transformer call."""

    name = "merged"

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return step.forward(branches).chunk(len(branches))


class Spoiler(PipelineUnit):
    """Writes noise a thousand times as large as the tokens into the padding, before every block."""

    name = "spoiler"

    def __init__(self) -> None:
        super().__init__()
        self.spoiled = 0

    @hookimpl(trylast=True)
    def before_block(self, forward: Forward, index: int) -> None:
        padding = forward.frame_index == -1
        self.spoiled += int(padding.sum())
        forward.x = torch.where(padding[:, None], 1000 * noise(*forward.x.shape, seed=index), forward.x)


class Recorder(WindowRecorder):
    """What an engine did: the results of its windows, and how much of the work it had. Ranks can send it each other."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []
        self.noise: list[Tensor] = []
        self.calls = 0
        self.blocks = 0
        self.tokens: set[int] = set()

    @hookimpl(tryfirst=True)
    def embed(self, forward: Forward) -> None:
        self.calls += 1

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        self.blocks += 1
        self.tokens.add(forward.x.shape[1])

    @hookimpl(trylast=True)
    def end_window(self, window: Window) -> None:
        super().end_window(window)
        seen = self.windows.pop()  # its steps hold the engine
        self.noise.append(seen.noise)
        self.results += seen.tensors().values()


@dataclass
class Video:
    """A video to make, and the units that have no part in spreading it."""

    frames: int = 9
    height: int = 32
    width: int = 32
    scale: float = 3.0
    audio_scale: float | None = None
    steps: int = 2
    windows: bool = True
    image: Path | None = None
    units: Sequence[PipelineUnit] = field(default_factory=lambda: [Texts()])

    def plan(self, *more: PipelineUnit) -> Plan:
        """Windows of 9 frames that share 5, unless all frames are one window."""
        voice = Voice()
        voice.frames = self.frames
        windows = [FixedFrames(window_frames=9, overlap=5)] if self.windows else []
        guidance = Guidance(scale=self.scale, audio_scale=self.audio_scale)
        conditions = [ReferenceImage(), voice, AudioAdapter(), *windows]
        denoising = [guidance, Schedule(steps=self.steps), Euler(), Transformer(), VaeDecode()]
        return Plan((*self.units, *conditions, *denoising, *more))

    def made(self, *more: PipelineUnit, world: World = ALONE, ahead: bool = False) -> tuple[Engine, Recorder]:
        """Make the video; returns the engine and what it did. ahead: set the units up before, as `omni run` does."""
        recorder = Recorder()
        engine = Engine(self.plan(*more), RandomModels(), world=world, observers=[recorder])
        if ahead:
            engine.load()
        inputs = {"image": self.image} if self.image is not None else {}
        engine.generate(Request(inputs, height=self.height, width=self.width))
        return engine, recorder


def worst_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error of any result."""
    assert len(actual) == len(expected)
    assert all(tensor.isfinite().all() for tensor in expected)
    return max(relative_error(one, other) for one, other in zip(actual, expected, strict=True))
