"""What frames cost between the last step and the file: memory, time to the first frame, and waiting for the encoder.

    python -m benchmarks.stream --size 1280x720 --window 81 --windows 3 [--device cuda --vae wan] [--output FILE]

A transformer that computes nothing, so that decoding, encoding and what is kept from window to window are all there is.
vae: `fake` has the shapes of Wan 2.1's VAE (16 channels, 8x8 pixels, 4 frames) and computes nothing; `wan` is that VAE
with random weights. Figures, all as JSON: the peak of the process above what it held before the video; on a GPU, the
peak of allocated memory above the weights, and what is still allocated in the steps of the second window; from the end
of the last step of a window to its first frame and to its last; seconds in which the video waited for the encoder.

The script runs on versions with whole windows of frames too, so that the figures before can be had: put it into the
folder `benchmarks` of an old checkout.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from benchmarks.report import publish
from benchmarks.synthetic import RandomModels
from omniavatar.bench.machine import machine
from omniavatar.bench.memory import Host
from omniavatar.engine import outline
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.engine.scopes import Forward, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import Pipeline, hookimpl
from omniavatar.testing import GivenModels
from omniavatar.units import Euler, FixedFrames, Guidance, Schedule, SmoothBorders, Transformer, VaeDecode, WriteVideo

CHANNELS = 16
STREAMS = hasattr(Pipeline, "output_frames")
"""Whether this version gives frames group by group."""


class Nothing(nn.Module):
    """A transformer without blocks; patches are 2x2 latents."""

    patch_size = (1, 2, 2)
    in_dim = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()

    def embed_patches(self, latents: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        frames, rows, columns = latents.shape[2:]
        x = rearrange(latents, "b c t (h p) (w q) -> b (t h w) (c p q)", p=2, q=2)
        return x, (frames, rows // 2, columns // 2)

    def embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        t_emb = timestep.float()[:, None]
        return t_emb, repeat(t_emb, "b d -> b m d", m=6)

    def rope(self, grid: tuple[int, int, int], device: torch.device) -> Tensor:
        return torch.zeros(grid[0] * grid[1] * grid[2], 1, 2, device=device)

    def head(self, x: Tensor, t_emb: Tensor) -> Tensor:
        return x * 0.1

    def unpatchify(self, values: Tensor, grid: tuple[int, int, int]) -> Tensor:
        frames, rows, columns = grid
        return rearrange(values, "b (t h w) (c p q) -> b c t (h p) (w q)", t=frames, h=rows, w=columns, p=2, q=2)


class ShapesOfWan(nn.Module):
    """Latents and frames in the shapes of Wan 2.1's VAE: frames repeat the mean of the latents' channels."""

    spatial_factor, temporal_factor, z_dim = 8, 4, CHANNELS

    def encode(self, video: Tensor, **options: object) -> Tensor:
        grey = video[:, :1, ::4, ::8, ::8]
        return grey.expand(-1, CHANNELS, -1, -1, -1).clone()

    def decode_frames(self, latents: Tensor, latents_per_pass: int = 1) -> Iterator[Tensor]:
        first = True
        for part in (latents[:, :, :1], *latents[:, :, 1:].split(latents_per_pass, dim=2)):
            grey = part.mean(dim=1, keepdim=True).repeat_interleave(1 if first else 4, dim=2)
            rows = grey.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
            yield rows.expand(-1, 3, -1, -1, -1).clamp(-1, 1)
            first = False

    def decode(self, latents: Tensor, latents_per_pass: int = 1, **options: object) -> Tensor:
        return torch.cat(list(self.decode_frames(latents, latents_per_pass)), dim=2)


class Length(PipelineUnit):
    """Gives the video its length."""

    name = "length"

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    @hookimpl
    def plan_length(self) -> outline.Length:
        return outline.Length(self.frames)

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.conditions["text"] = forward.x[:, :1]


class Watch:
    """When windows were denoised, shown first and shown last; what a GPU held in the steps of the second window."""

    def __init__(self) -> None:
        self.denoised: list[float] = []
        self.first: list[float] = []
        self.last: list[float] = []
        self.held_in_second: int | None = None

    @hookimpl(trylast=True)
    def before_step(self, step: Step) -> None:
        if step.window.index == 1 and step.engine.device.type == "cuda":
            self.held_in_second = torch.cuda.memory_allocated()

    @hookimpl
    def after_step(self, step: Step) -> None:
        if step.index == len(step.window.steps) - 1:
            if step.engine.device.type == "cuda":
                torch.cuda.synchronize()
            self.denoised.append(time.perf_counter())

    @hookimpl(wrapper=True)
    def end_window(self, window: Window) -> Iterator[None]:
        result = yield
        self.last.append(time.perf_counter())
        if not STREAMS:
            self.first.append(self.last[-1])
        return result

    if STREAMS:

        @hookimpl
        def output_frames(self) -> None:
            if len(self.first) < len(self.denoised):
                self.first.append(time.perf_counter())


def waited_for_encoder() -> list[float]:
    """Seconds that callers of the writer's `write` will have waited, one for each call."""
    from omniavatar.units import write_video

    seconds: list[float] = []
    original = write_video.VideoWriter.write

    def write(self: Any, frames: Any) -> None:
        started = time.perf_counter()
        original(self, frames)
        seconds.append(time.perf_counter() - started)

    write_video.VideoWriter.write = write  # type: ignore[method-assign]
    return seconds


def engine_of(arguments: argparse.Namespace, frames: int, watch: Watch) -> Engine:
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vae: nn.Module = ShapesOfWan()
    if arguments.vae == "wan":
        vae = RandomModels("1.3b", with_vae=True).load("vae", device=device, dtype=dtype)
    units = [
        Length(frames),
        FixedFrames(window_frames=arguments.window, overlap=arguments.overlap),
        Guidance(scale=1),
        Schedule(steps=arguments.steps),
        Euler(),
        Transformer(),
        VaeDecode(),
        SmoothBorders(),
        WriteVideo(),
    ]
    models = GivenModels(dit=Nothing(), vae=vae)
    return Engine(Plan(tuple(units)), models, device=device, dtype=dtype, observers=[watch])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One video, after a first one that does not count."""
    width, height = (int(side) for side in arguments.size.split("x"))
    frames = arguments.window + (arguments.windows - 1) * (arguments.window - arguments.overlap)
    host, watch, waits = Host(), Watch(), waited_for_encoder()
    engine = engine_of(arguments, frames, watch)
    cuda = engine.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        request = Request({"output": Path(folder, "a.mp4")}, height=height, width=width)
        engine.generate(request)
        for each in (waits, watch.denoised, watch.first, watch.last):
            each.clear()
        host.reset()
        before = host.now() or 0.0
        held = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        engine.generate(request)
        seconds = time.perf_counter() - started
    mib = 2.0**20
    result = {
        "frames": frames,
        "windows": len(watch.last),
        "seconds": round(seconds, 3),
        "host_mib": round(((host.peak() or 0.0) - before) / mib, 1),
        "first_frame_seconds": median(watch.first, watch.denoised),
        "last_frame_seconds": median(watch.last, watch.denoised),
        "encoder_wait_seconds": round(sum(waits), 3),
        "encoder_wait_percent": round(100 * sum(waits) / seconds, 2),
    }
    if cuda:
        result["device_mib"] = round((torch.cuda.max_memory_allocated() - held) / mib, 1)
        result["device_mib_in_steps"] = round(((watch.held_in_second or held) - held) / mib, 1)
    return result


def median(after: list[float], before: list[float]) -> float:
    return round(statistics.median(end - begin for begin, end in zip(before, after, strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.getdoc(inspect.getmodule(main)))
    parser.add_argument("--size", default="1280x720", metavar="WIDTHxHEIGHT")
    parser.add_argument("--window", type=int, default=81)
    parser.add_argument("--overlap", type=int, default=13)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vae", choices=("fake", "wan"), default="fake")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    options = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish({"machine": machine(torch.device(arguments.device)), **options, **measure(arguments)}, arguments.output)


if __name__ == "__main__":
    main()
