"""What LoRA training of the real sizes takes: `python -m benchmarks.training --size 14b --output results.json`.

One sample of 720x400x105 (30,375 tokens) in a micro-batch, trained as the original was: LoRA of rank 128 on q, k, v, o
and the feed-forward, the audio layers and the patch embedding; networks of the true shapes with random weights, bf16
with float32 trained weights, AdamW. For each way: the seconds of the forward pass alone and of a whole update, how many
forward passes an update costs, and the peak memory of the GPU; `of_three_forwards` is what an update would cost if its
backward pass took two forward passes, as a share of what it does cost (goal: 0.9; gradient checkpointing runs a forward
pass more). On a machine without a GPU it runs small networks, to show that it works; those times mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import publish
from benchmarks.synthetic import AUDIO, ROWS, TEXT_TOKENS, RandomModels
from omniavatar import builtin
from omniavatar.bench.machine import command, machine
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.testing.models import WAN
from omniavatar.training.diffusion import Diffusion, DiffusionConfig, DiffusionTask
from omniavatar.training.preparation import CLEAN
from omniavatar.training.trainer import Settings, Trainer, generator

WAYS = {"default": "default", "gradient checkpointing": "default+gradient-checkpointing"}
HEIGHT, WIDTH, FRAMES, PREFIX = 400, 720, 105, 13


class Networks(RandomModels):
    """Those that stay as they are exist, and are never loaded: samples are ready."""

    def __contains__(self, role: object) -> bool:
        return role != "lora"

    def identity(self, role: str) -> str:
        """Random weights are all alike."""
        return "random"


class RandomSamples:
    """Batches of the shapes that prepared samples have."""

    def __init__(self, text_dim: int, device: torch.device, size: tuple[int, int, int]) -> None:
        height, width, frames = size
        shape = (WAN.latent_frames(frames), height // 8, width // 8)
        prefix = (WAN.latent_frames(PREFIX), *shape[1:])
        sizes = {
            CLEAN: (16, *shape),
            "condition": (17, *shape),
            "given_latents": (16, *prefix),
            "image_latent": (16, 1, *shape[1:]),
            "prompt_embedding": (TEXT_TOKENS, text_dim),
            "negative_embedding": (TEXT_TOKENS, text_dim),
            "audio_rows": (frames, AUDIO["audio_in_dim"]),
        }
        self.values = {name: torch.randn(1, *shape, device=device) for name, shape in sizes.items()}

    def draw(self, draw: torch.Generator, count: int) -> dict[str, Tensor]:
        """The same values every time."""
        return {name: value.expand(count, *value.shape[1:]) for name, value in self.values.items()}


def measure(size: str, expression: str, updates: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Seconds and memory of one way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    task = task_of(size, expression, device, dtype, shape)
    settings = Settings(steps=updates + 2, learning_rate=1e-4, precision="bf16" if device.type == "cuda" else "fp32")
    with TemporaryDirectory() as folder:
        trainer = Trainer(task, settings, Path(folder), device=device)
        loaded = allocated(device)
        forward = timed(lambda: forwards(task, trainer), device, updates)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        update = timed(trainer.update, device, updates)
        peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {
        "plan": expression,
        "trained_parameters": sum(weight.numel() for weight in trainer.parameters.values()),
        "loaded_gib": round(loaded, 2),
        "peak_gib": round(peak, 2),
        "seconds_forward": round(forward, 4),
        "seconds_update": round(update, 4),
        "forwards_per_update": round(update / forward, 3),
        "of_three_forwards": round(3 * forward / update, 3),
    }


def task_of(
    size: str, expression: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]
) -> DiffusionTask:
    """LoRA training as the original's, on random samples."""
    catalog = Catalog({unit.name: unit for unit in builtin.omni_units()}, builtin.omni_presets())
    models = Networks(size)
    config = DiffusionConfig(
        train={"lora": {}, "weights": ["audio_adapter.*", "dit.patch_embedding.*"]},
        trainer={"steps": 1},
        objective={"drop": {"audio": 0.1}},
    )
    run = Diffusion.open(config, build_plan(expression, catalog), models, device=device, dtype=dtype)
    return run.task(RandomSamples(models.config("dit")["text_dim"], device, shape))


@torch.no_grad()
def forwards(task: DiffusionTask, trainer: Trainer) -> None:
    """The forward pass of a micro-batch."""
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.settings.precision == "bf16"):
        task.loss(task.batch(generator(0)))


def timed(work: Any, device: torch.device, times: int) -> float:
    """The median seconds of a piece of work, after one for warming up."""
    _, *seconds = [seconds_of(work, device) for _ in range(times + 1)]
    return statistics.median(seconds)


def seconds_of(work: Any, device: torch.device) -> float:
    """Seconds of a piece of work, with the device waited for."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def allocated(device: torch.device) -> float:
    """GiB on the GPU."""
    return torch.cuda.memory_allocated() / 2**30 if device.type == "cuda" else 0.0


def main() -> None:
    """Measure all ways of one size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=ROWS, default="1.3b" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.updates < 1:
        parser.error(f"--updates is {arguments.updates}; give 1 or more")
    shape = (HEIGHT, WIDTH, FRAMES) if arguments.size != "tiny" else (64, 64, 33)
    results = []
    for way in arguments.ways:
        try:
            result = {"way": way, **measure(arguments.size, WAYS[way], arguments.updates, shape)}
        except torch.OutOfMemoryError:
            result = {"way": way, "refused": "out of memory"}
        results.append(result)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    content = {
        "machine": machine("cuda" if torch.cuda.is_available() else "cpu"),
        "command": command("benchmarks.training"),
        "size": arguments.size,
        "height": shape[0],
        "width": shape[1],
        "frames": shape[2],
        "results": results,
    }
    publish(content, arguments.output)


if __name__ == "__main__":
    main()
