"""Makes the small videos, from networks with random weights that are kept in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from omniavatar.distributed.world import ALONE, World
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import build_plan
from omniavatar.engine.run import Result
from omniavatar.engine.scopes import Request
from omniavatar.media import ffmpeg
from omniavatar.media.video import probe_video
from omniavatar.testing import GivenLora
from omniavatar.testing.recorder import WindowRecorder, video_of
from omniavatar.testing.tiny import tiny_file
from tests.compatibility.cases import FRAMES, UNITS, Case, catalog
from tests.compatibility.scenarios import ATTENTION, NETWORKS, File, Maker, Sizes, averages
from tests.media.samples import gradient_frames, tone, write_lossless, write_wav
from tests.models.networks import noise, randomized, relative_error

FPS = 25


class Broken(Exception):
    """A promise that was not kept."""


@dataclass(frozen=True)
class Video:
    """What was made: latents and pictures of every window, and the pictures that are in the video (1 3 t h w)."""

    windows: list[Tensor]
    shown: Tensor

    def difference(self, other: Video) -> float:
        """The largest relative difference; infinite between videos of other windows."""
        if [tensor.shape for tensor in self.windows] != [tensor.shape for tensor in other.windows]:
            return float("inf")
        pairs = zip(self.windows, other.windows, strict=True)
        return max(0.0 if torch.equal(one, two) else relative_error(one, two) for one, two in pairs)

    def flaw(self, case: Case, result: Result) -> str | None:
        """What is wrong with it by itself."""
        more = case.settings.get("audio", {}).get("frame_count") == "original"  # one frame, as the original makes
        shape = (1, 3, case.frames + more, case.size, case.size)
        if self.shown.shape != shape:
            return f"the video has shape {tuple(self.shown.shape)} and not {shape}"
        if not all(tensor.isfinite().all() for tensor in self.windows):
            return "the video has values that are not finite"
        if result.video is not None:
            info = probe_video(result.video)
            if (info.frames, info.height, info.width) != shape[2:]:
                return f"the file has {info.frames} frames of {info.height}x{info.width}"
        return None


class Studio:
    """Makes each video once.

    files: the folder of `write_files`. output: a folder of its own for what units write.
    world: the ranks that make a video together, unless it is to be made alone.
    """

    def __init__(self, files: Path, output: Path, world: World = ALONE) -> None:
        self.files, self.output, self.world = files, output, world
        self._made: dict[tuple[str, bool, bool], Video | Exception] = {}

    def make(self, case: Case, *, alone: bool = False, twice: bool = False) -> Video:
        """The video of a case. Raises what the engine raises, and Broken if it breaks a promise by itself.

        twice: a second one by the same engine must be the same.
        """
        key = case.key, alone, twice or (case.key, alone, True) in self._made
        if key not in self._made:
            try:
                self._made[key] = self._make(case, ALONE if alone else self.world, twice)
            except Exception as error:
                self._made[key] = error
        made = self._made[key]
        if isinstance(made, Exception):
            raise made
        return made

    def _make(self, case: Case, world: World, twice: bool) -> Video:
        plan = build_plan(str(case), catalog(), case.settings)
        engine = Engine(plan, Models(case), world=world)
        inputs = {name: self._path(value) if isinstance(value, File) else value for name, value in case.inputs.items()}
        request = Request(inputs, height=case.size, width=case.size, seconds=case.frames / FPS, fps=FPS)
        video, result = filmed(engine, request)
        if flaw := video.flaw(case, result):
            raise Broken(flaw)
        if twice and video.difference(filmed(engine, request)[0]) > 0:
            raise Broken("a second run makes another video")
        return video

    def _path(self, file: File) -> Path:
        path = self.files / file.name
        return path if path.exists() else self.output / file.name


def filmed(engine: Engine, request: Request) -> tuple[Video, Result]:
    """Make a video, and keep what its windows end with."""
    recorder = WindowRecorder()
    result = engine.generate(request, observers=[recorder])
    tensors = [tensor for window in recorder.windows for tensor in window.tensors().values()]
    return Video(tensors, video_of(recorder.windows)), result


# Networks -----------------------------------------------------------------------------------------------------------


@cache
def network(maker: Maker, sizes: Sizes, seed: int = 0) -> nn.Module:
    """A network with random weights, the same in every process."""
    torch.manual_seed(seed)
    made: nn.Module = randomized(maker(sizes), seed).requires_grad_(False)
    return made


class Models:
    """The networks for a case; an `omniavatar.engine.engine.Models`."""

    def __init__(self, case: Case) -> None:
        scenarios = [scenario for name, scenario in UNITS.items() if name in case.units]
        self.copies = any(scenario.alters for scenario in scenarios)
        self.makers = dict(NETWORKS)
        for scenario in scenarios:
            self.makers |= scenario.networks
        if "dit2" in self.makers:
            self.makers["dit2"] = self.makers["dit"]
        if not case.real:
            self.makers["vae"] = averages
        vae: Any = network(self.makers["vae"], Sizes(0, 0, 0))
        condition = sum(scenario.condition(vae.z_dim) for scenario in scenarios)
        self.sizes = Sizes(vae.z_dim, vae.spatial_factor, condition)

    def __contains__(self, role: object) -> bool:
        return role in self.makers

    def network(self, role: str) -> nn.Module:
        sizes = Sizes(0, 0, 0) if role == "vae" else self.sizes
        return network(self.makers[role], sizes, seed=int(role == "dit2"))

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        """The network, which attends as the engine does that has asked last; a copy if a unit changes it."""
        attention = constructor["attention"]
        if self.copies:
            return copy.deepcopy(self.network(role), {id(ATTENTION): attention})
        ATTENTION.slot = attention
        return self.network(role)

    def config(self, role: str) -> Mapping[str, Any]:
        return vars(self.network(role))

    def beside(self, role: str, path: Path) -> Path:
        return tiny_file("tokenizer")

    def tokenizer(self, role: str) -> None:
        """None lies in a file."""

    def adapters(self) -> Sequence[Any]:
        return [queries(self.network("dit"))]


def queries(dit: Any) -> GivenLora:
    """A LoRA for the queries of the first block."""
    layer = "blocks.0.self_attn.q"
    down, up = noise(2, dit.dim, seed=1), noise(dit.dim, 2, seed=2)
    return GivenLora({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, name="queries")


# Files --------------------------------------------------------------------------------------------------------------


def write_files(folder: Path) -> None:
    """The inputs that scenarios name."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("portrait", "other"):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((64, 64)).save(folder / f"{name}.png")
    write_wav(folder / "voice.wav", tone(0.6, 16000), 16000)
    write_lossless(folder / "control.mkv", gradient_frames(FRAMES, 32, 32))
    write_lossless(folder / "face.mkv", 255 - gradient_frames(FRAMES, 32, 32))


@contextmanager
def reading_once(files: Path) -> Iterator[None]:
    """Decode each of these files once: to start ffmpeg takes as long as to make a video."""
    run, describe = ffmpeg.run, ffmpeg.describe
    decoded: dict[tuple[str, ...], bytes] = {}

    def run_once(arguments: Sequence[str]) -> bytearray:
        key = tuple(arguments)
        if not any(str(files) in argument for argument in key):
            return run(arguments)
        if key not in decoded:
            decoded[key] = bytes(run(arguments))
        return bytearray(decoded[key])

    @cache
    def describe_once(path: Path, what: str) -> str:
        return describe(path, what)

    def described(path: Path, what: str) -> str:
        return describe_once(path, what) if files in path.parents else describe(path, what)

    with mock.patch.object(ffmpeg, "run", run_once), mock.patch.object(ffmpeg, "describe", described):
        yield
