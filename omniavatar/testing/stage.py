"""A small stage for units: test networks, videos of two windows and three branches, and what came of them.

stage = Stage(folder, networks={"motion_controller": (MotionController, {"freq_dim": 32, "dim": 96})}, ...)
plan = build_plan("default-write-video+motion", catalog, SETTINGS)
take = stage.player(plan).play(stage.request(plan))
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from omniavatar.checkpoints.loading import parameter_names
from omniavatar.distributed.groups import Group
from omniavatar.distributed.sharding import Sharding
from omniavatar.distributed.world import World
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.engine.scopes import Branch, Forward, Job, Request, Step
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.attention import Attention, AttentionSlot
from omniavatar.models.audio_adapter import AudioAdapter
from omniavatar.models.umt5 import UMT5Encoder
from omniavatar.models.wan_dit import WanDiT
from omniavatar.models.wan_vae import WanVAE
from omniavatar.models.wav2vec import AudioEncoder
from omniavatar.resources import asset
from omniavatar.testing import tiny
from omniavatar.testing.models import GivenLora
from omniavatar.testing.recorder import SeenWindow, WindowRecorder
from omniavatar.testing.tiny import tiny_file
from omniavatar.testing.weights import randomized, relative_error

Network = tuple[Callable[..., nn.Module], Mapping[str, Any]]
"""A network's class and the numbers for its constructor, as in a checkpoint table."""

SETTINGS: dict[str, dict[str, Any]] = {
    "prompt": {"length": 16},
    "fixed-frames": {"window_frames": 9, "overlap": 5},
    "guidance": {"scale": 3.0, "audio_scale": 2.0},
    "compile": {"backend": "aot_eager"},
    "schedule": {"steps": 3},
    "teacache": {"threshold": 10.0},
    "magcache": {"ratios": [1.0], "retention": 0.0},
    "first-block-cache": {"threshold": 10.0},
    "cfg-zero-star": {"zero_share": 0.34},
    "guidance-interval": {"low": 0.8},
    "sliding-window": {"size": 2, "stride": 1},
}
"""Two windows for 13 frames, three branches, a step that a cache can skip, a step without guidance and one that stands
still, pieces smaller than a window."""
FPS = 25
FRAMES = 13
ONE_WINDOW = 9
PATIENCE = 60.0
"""Seconds after which ranks that wait for each other give up."""


def tiny_audio_encoder() -> nn.Module:
    """wav2vec2 with small numbers."""
    from transformers import Wav2Vec2Config

    return AudioEncoder(Wav2Vec2Config(**tiny.WAV2VEC))


NETWORKS: dict[str, Network] = {
    "dit": (WanDiT, tiny.DIT),
    "vae": (WanVAE, tiny.VAE),
    "text_encoder": (UMT5Encoder, tiny.TEXT),
    "audio_encoder": (tiny_audio_encoder, {}),
    "audio_adapter": (AudioAdapter, tiny.ADAPTER),
}


PLACE = AttentionSlot()
"""Stands for the attention of an engine in networks that are to be copied."""


class StageModels:
    """Networks with random weights, of which every engine gets copies of its own; an `engine.engine.Models`."""

    def __init__(self, networks: Mapping[str, Network]) -> None:
        self.networks = networks
        self._made: dict[str, nn.Module] = {}

    def __contains__(self, role: object) -> bool:
        return role in self.networks

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        """A new network; one whose constructor takes an `attention` gets that of the engine.

        Audio encoders always run in float32, as their rows of the checkpoint tables say.
        """
        copy: nn.Module = deepcopy(self.original(role), {id(PLACE): constructor.get("attention", AttentionSlot())})
        return copy.to(device, torch.float32 if isinstance(copy, AudioEncoder) else dtype)

    def original(self, role: str) -> nn.Module:
        """The network of which all engines have copies."""
        if role not in self._made:
            make, numbers = self.networks[role]
            place = {"attention": PLACE} if "attention" in parameter_names(make) else {}
            network = randomized(make(**numbers, **place), seed=zlib.crc32(role.encode()))
            self._made[role] = network.requires_grad_(False)
        return self._made[role]

    def config(self, role: str) -> Mapping[str, Any]:
        """The numbers of this role's network."""
        return self.networks[role][1]

    def beside(self, role: str, path: Path) -> Path:
        """The tokenizer of the test networks, whichever is asked for."""
        return tiny_file("tokenizer")

    def tokenizer(self, role: str) -> None:
        """None lies in a file."""

    def adapters(self) -> Sequence[GivenLora]:
        """A LoRA of rank 2 for the transformer's first block, if it has linear layers."""
        generator, pairs = torch.Generator().manual_seed(0), {}
        for name, layer in self.original("dit").named_modules():
            if name.startswith("blocks.0.") and isinstance(layer, nn.Linear):
                pairs[f"{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator) / 10
                pairs[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator) / 10
        return [GivenLora(pairs, name="small")] if pairs else []


@dataclass
class Take:
    """One video: its windows, the tensors that came of each, and what a run needs to go on behind the first.

    state: as in a file; None if the video has one window, or for the reason `unsaved`.
    """

    windows: list[SeenWindow] = field(default_factory=list)
    tensors: list[dict[str, Tensor]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    state: bytes | None = None
    unsaved: str = ""


class Results:
    """Observes runs and keeps the results of the last one."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    @hookimpl(trylast=True)
    def end_job(self, job: Job) -> None:
        self.found = {name: contents(value) for name, value in job.results.items()}


@dataclass(frozen=True)
class Player:
    """An engine and what watches it."""

    engine: Engine

    def play(self, request: Request, state: bytes | None = None) -> Take:
        """Make a video; with a `state`, as in a file, what follows the window behind which it was taken."""
        recorder, results, take = WindowRecorder(), Results(), Take()
        resume = None if state is None else safetensors.torch.load(state)
        with self.engine.start(request, observers=[recorder, results], resume=resume) as run:
            for chunk in run:
                if chunk.index == 0 and chunk.count > 1:
                    try:
                        take.state = safetensors.torch.save(dict(run.state()))
                    except InputError as error:
                        take.unsaved = str(error)
        take.windows, take.results = recorder.windows, results.found
        take.tensors = [window.tensors() for window in take.windows]
        return take


class Stage:
    """What all videos of a check have in common. `folder` is for the files that they write."""

    def __init__(
        self, folder: Path, networks: Mapping[str, Network], inputs: Mapping[str, Any], size: tuple[int, int]
    ) -> None:
        self.folder = folder
        self.models = StageModels({**NETWORKS, **networks})
        self.inputs = inputs
        self.size = size
        self._files = iter(range(1_000_000))

    def player(
        self, plan: Plan, *observers: Any, rank: int = 0, make: Callable[..., Engine] = Engine, **options: Any
    ) -> Player:
        """A new engine with networks of its own; `options` are further ones of `Engine`."""
        return Player(make(plan, self.models, observers=observers, world=World(rank=rank), **options))

    def request(self, plan: Plan, *, frames: int = FRAMES, seed: int = 1, **inputs: Any) -> Request:
        """A video of the portrait and the voice, as far as the plan takes them, with the inputs of the check."""
        height, width = self.size
        common = {
            "image": asset("demo", "portrait.png"),
            "audio": asset("demo", "speech.flac"),
            "prompt": "a person talks",
            "output": self.folder / f"{next(self._files)}.mp4",
        }
        taken = {name: value for name, value in {**common, **inputs}.items() if name in plan.input_fields}
        return Request(taken, seed=seed, height=height, width=width, seconds=frames / FPS, fps=FPS)


def contents(value: Any) -> Any:
    """A result, of a file what is in it."""
    return value.read_bytes() if isinstance(value, Path) and value.is_file() else value


def difference(take: Take, expected: Take, tolerance: float = 0.0, first: int = 0) -> str:
    """Where the windows of a take are not those of another from its window `first` on; nothing if they are."""
    if len(take.tensors) != len(expected.tensors) - first:
        return f"there are {len(take.tensors)} windows instead of {len(expected.tensors) - first}"
    for index, (one, other) in enumerate(zip(take.tensors, expected.tensors[first:], strict=True), start=first):
        for name in (name for name in one if name in other):
            if one[name].shape != other[name].shape:
                return f"'{name}' of window {index} is {tuple(one[name].shape)}, not {tuple(other[name].shape)}"
            if not torch.equal(one[name], other[name]):
                error = relative_error(one[name], other[name])
                if not error <= tolerance:
                    return f"'{name}' of window {index} differs by {error:.1g} of its size"
    return ""


# What is done to a video ---------------------------------------------------------------------------------------------


class Backwards:
    """Every branch in a call of its own, the last one first."""

    @hookimpl(tryfirst=True)
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor] | None:
        if len(branches) == 1:
            return None
        return [step.predict([branch])[0] for branch in reversed(branches)][::-1]


class OneBatch:
    """All branches in one call."""

    @hookimpl(tryfirst=True)
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor] | None:
        return None if len(branches) == 1 else step.forward(branches).chunk(len(branches))


class Interruption:
    """Ends the first job in its last window, as Ctrl-C does; later jobs go on."""

    def __init__(self) -> None:
        self.is_over = False

    @hookimpl(tryfirst=True)
    def after_step(self, step: Step) -> None:
        if step.window.is_last and not self.is_over:
            self.is_over = True
            raise KeyboardInterrupt


class Exchange:
    """What ranks hand each other. They are threads of one process and work by turns, which change where they wait.

    So they cannot disturb each other by what torch keeps for the whole process, such as its compiler.
    """

    def __init__(self, ranks: int) -> None:
        self.turn = threading.Lock()
        self.barrier = threading.Barrier(ranks, timeout=PATIENCE)
        self.parts: list[Tensor] = [torch.empty(0)] * ranks

    def gather(self, rank: int, part: Tensor) -> list[Tensor]:
        self.parts[rank] = part
        self.wait()
        parts = list(self.parts)
        self.wait()
        return parts

    def wait(self) -> None:
        """Let the other ranks come as far."""
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()


class ThreadGroup(Group):
    """A group of threads; `handle` is their exchange."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        gathered: list[Tensor] = self.handle.gather(self.rank, tensor)
        return gathered


class OneOfRanks:
    """Leaves one rank its share of the tokens of every call, as `sequence-parallel` does."""

    def __init__(self, group: Group) -> None:
        self.group = group

    @hookimpl(wrapper=True, tryfirst=True)
    def embed(self, forward: Forward) -> Iterator[None]:
        yield
        forward.shard_tokens(Sharding(self.group, forward.x.shape[1]))

    @hookimpl(wrapper=True, tryfirst=True)
    def run_blocks(self, forward: Forward) -> Iterator[None]:
        with forward.engine.attention.wrapped(lambda inner: over_all_tokens(inner, forward)):
            return (yield)


def over_all_tokens(inner: Attention, forward: Forward) -> Attention:
    """Attention of this rank's tokens to those of all ranks."""
    return lambda q, k, v: inner(q, forward.gather(k), forward.gather(v))


def play_on_ranks(stage: Stage, plans: Sequence[Plan], request: Callable[[], Request]) -> list[Take]:
    """The takes of ranks that share the tokens, one plan each. What one raises is raised."""
    exchange = Exchange(len(plans))

    def play(rank: int) -> Take:
        observer = OneOfRanks(ThreadGroup(rank, len(plans), exchange))
        with exchange.turn:
            try:
                return stage.player(plans[rank], observer, rank=rank).play(requests[rank])
            except BaseException:
                exchange.barrier.abort()
                raise

    requests = [request() for _ in plans]
    with ThreadPoolExecutor(len(plans)) as pool:
        futures = [pool.submit(play, rank) for rank in range(len(plans))]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
