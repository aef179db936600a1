"""How well `omni estimate` foresees a run: `python -m benchmarks.estimate --size 14b --output results.json`.

For every plan: what a rehearsal says, and what the same video then takes, with networks of the true shapes and random
weights; and by what part the estimate is off. Two windows of 720x400x105 with a picture, audio and joint guidance. On a
machine without a GPU it runs a small size, to show that it works.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import publish
from benchmarks.synthetic import ROWS, RandomModels, RandomSound, RandomText
from omniavatar.bench.machine import machine
from omniavatar.cli.progress import Display, Watcher
from omniavatar.cli.videos import peak_memory
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Forward, Request, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import OmniError
from omniavatar.estimate.rehearsal import Rehearsal
from omniavatar.hookspecs import hookimpl
from omniavatar.plugins import discover
from omniavatar.testing.models import WAN

BASE = (
    "prompt+reference-image+random-sound+audio-adapter+fixed-frames+guidance+schedule+euler+transformer+lora+vae-decode"
)
PLANS = ("", "+compile", "+teacache(threshold=0.2)", "+offload", "+fp8", "+offload+fp8", "+cfg-merge")
COMPARED = {
    "prepare_seconds": "seconds",
    "denoise_seconds": "seconds",
    "decode_seconds": "seconds",
    "generate_seconds": "seconds",
    "peak_gpu_mib": "memory",
    "peak_rss_mib": "memory",
    "transformer_calls": "count",
    "transformer_calls_skipped": "count",
    "windows": "count",
    "steps": "count",
}


class Sound(RandomSound):
    """Random features for the length of the video."""

    def __init__(self, frames: int = 0) -> None:
        super().__init__(frames)


class Transformers:
    """The seconds that transformer calls take; and pictures are waited for, as by a video that is written."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @hookimpl(wrapper=True)
    def call(self, forward: Forward) -> Iterator[Any]:
        forward.engine.wait()
        begin = time.perf_counter()
        velocity = yield
        forward.engine.wait()
        self.seconds += time.perf_counter() - begin
        return velocity

    @hookimpl(trylast=True)
    def end_window(self, window: Window) -> None:
        window.engine.wait()


def engine_of(plan: str, models: RandomModels, arguments: argparse.Namespace, observers: list[Any]) -> Engine:
    """The engine for a plan, nothing loaded."""
    found = discover().catalog()
    units: dict[str, type[PipelineUnit]] = {**found.units, RandomText.name: RandomText, Sound.name: Sound}
    settings = {
        "schedule": {"steps": arguments.steps},
        "fixed-frames": {"window_frames": arguments.window_frames},
    }
    made = build_plan(BASE + plan, Catalog(units, {}), settings)
    for unit in made.units:
        if isinstance(unit, Sound):
            unit.frames = arguments.frames
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda:0", torch.bfloat16) if cuda else ("cpu", torch.float32)
    return Engine(made, models, device=device, dtype=dtype, observers=observers)


def compare(plan: str, models: RandomModels, arguments: argparse.Namespace) -> dict[str, Any]:
    """The estimate of a plan, the run, and what lies between them."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (arguments.height, arguments.width, 3), dtype=np.uint8)
    request = Request({"image": picture}, height=arguments.height, width=arguments.width)
    begin = time.perf_counter()
    foreseen = Rehearsal(engine_of(plan, models, arguments, [])).estimate(request).as_json()
    took = time.perf_counter() - begin
    clean()
    watcher, transformers = Watcher(Display()), Transformers()
    engine = engine_of(plan, models, arguments, [watcher, transformers])
    watcher.load(engine, lambda: None)
    engine.generate(request)
    figures = {**vars(watcher.timings), **peak_memory(engine.device)}
    return {
        "plan": BASE + plan,
        "estimate_seconds": round(took, 1),
        "estimate": foreseen,
        "run": {name: round(figures[name], 3) for name in COMPARED if name in figures},
        "share_outside_transformer": round(1 - transformers.seconds / figures["generate_seconds"], 4),
        "off": {name: off(foreseen[name], figures[name]) for name in COMPARED if name in figures},
    }


def off(foreseen: float | None, measured: float) -> float | None:
    """By what part of it an estimate misses a figure; 0 for equal ones, None if there is nothing to compare."""
    if foreseen == measured:
        return 0.0
    return None if foreseen is None or not measured else round(foreseen / measured - 1, 4)


def clean() -> None:
    """Free what the last engine held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Compare all plans of one size."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=ROWS, default="1.3b" if cuda else "tiny")
    parser.add_argument(
        "--plans", nargs="+", default=list(PLANS) if cuda else list(PLANS[:1]), help="added to the base"
    )
    parser.add_argument("--steps", type=int, default=25 if cuda else 4)
    parser.add_argument("--height", type=int, default=400 if cuda else 64)
    parser.add_argument("--width", type=int, default=720 if cuda else 64)
    parser.add_argument("--window-frames", type=int, default=105 if cuda else 17)
    parser.add_argument("--frames", type=int, help="of the video; default: two windows")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    arguments.frames = arguments.frames or WAN.rounded_up(2 * arguments.window_frames - 13)
    models = RandomModels(arguments.size, with_vae=True)
    results = []
    for plan in arguments.plans:
        try:
            results.append(compare(plan, models, arguments))
        except (OmniError, torch.OutOfMemoryError) as error:
            results.append({"plan": BASE + plan, "refused": str(error).partition("\n")[0]})
        clean()
    given = {key: value for key, value in vars(arguments).items() if key != "output"}
    content = {"machine": machine("cuda:0" if cuda else "cpu"), **given}
    publish({**content, "results": results}, arguments.output)


if __name__ == "__main__":
    main()
