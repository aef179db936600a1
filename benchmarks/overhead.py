"""What the engine costs: `python -m benchmarks.overhead [--output FILE]`.

Denoises the same window of the tiny model twice: through the engine with its units and hooks, and by a bare loop that
calls the networks directly. Both do the same work (the results are compared), in turns, after a warm-up. Also: the time
that recognising a 14B checkpoint takes (a sparse file of its true size), and the peak memory of `omni run`.
Figures are printed and written as JSON, with the machine and versions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import publish
from omniavatar.bench.machine import machine
from omniavatar.checkpoints import Bundle, Registry
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.engine.engine import Engine
from omniavatar.engine.flow_match import shifted_sigmas
from omniavatar.engine.plan import build_plan
from omniavatar.engine.scopes import Request, Window
from omniavatar.models.wan_dit import BlockInputs
from omniavatar.plugins import discover
from omniavatar.resources import asset
from omniavatar.testing.tiny import FILES
from omniavatar.units.reference_image import condition

STEPS = 10
SCALE, SHIFT = 4.5, 5.0


def tiny_models() -> Bundle:
    return Bundle.open([str(asset("tiny", name)) for name in FILES], Registry.builtin())


class Prepared:
    """One window of the demo, ready to be denoised again and again."""

    def __init__(self) -> None:
        models = tiny_models()
        settings: dict[str, dict[str, Any]] = {
            "schedule": {"steps": STEPS, "shift": SHIFT},
            "guidance": {"scale": SCALE},
        }
        expression = "default-write-video-vae-decode-fixed-frames"
        plan = build_plan(expression, discover().catalog(), models.settings(), settings)
        self.engine = Engine(plan, models)
        self.bare_dit: Any = models.load("dit", dtype=torch.float32)
        inputs = {"image": asset("demo", "portrait.png"), "audio": asset("demo", "speech.flac"), "prompt": "A talk."}
        self.request = Request(inputs, seconds=1.96)
        self.run = self.engine.start(self.request)
        self.run.begin()

    def window(self) -> Window:
        """A fresh window: its noise, steps and conditions."""
        return self.run.open_window(0, self.run.job.spans[0])

    def by_engine(self, window: Window) -> Tensor:
        """The engine's inner loop."""
        for _ in self.run.denoise(window):
            pass
        return window.latents

    def by_hand(self, window: Window) -> Tensor:
        """The same work without engine, units and hooks."""
        dit, adapter = self.bare_dit, self.engine.model("audio_adapter")
        branches = [
            (dit.embed_text(window[text]), window[sound])
            for text, sound in (("prompt_embedding", "audio_residuals"), ("negative_embedding", "audio_silence"))
        ]
        y = condition(window.latents, window["image_latent"], window.given_latent_frames)
        latents, entry = window.latents, adapter.entry_blocks
        sigmas = [*shifted_sigmas(STEPS, SHIFT).tolist(), 0.0]
        grid, rope, frame_index = None, None, None
        for sigma, following in pairwise(sigmas):
            velocities = []
            for context, residuals in branches:
                x, grid = dit.embed_patches(torch.cat([latents, y], dim=1))
                if rope is None:
                    rope = dit.rope(grid, latents.device)
                    frame_index = torch.arange(grid[0]).repeat_interleave(grid[1] * grid[2])
                t_emb, t_mod = dit.embed_time(torch.full((1,), sigma * 1000, dtype=torch.float64))
                for index, block in enumerate(dit.blocks):
                    if index in entry:
                        x = x + residuals[:, entry.index(index)][:, frame_index]
                    x = block(x, BlockInputs(t_mod, rope, {"text": context}))
                velocities.append(dit.unpatchify(dit.head(x, t_emb), grid).float())
            positive, negative = velocities
            velocity = SCALE * positive + (1 - SCALE) * negative
            latents = latents + velocity * (following - sigma)
        return latents


def timed(run: Callable[[Window], Tensor], window: Window) -> tuple[float, Tensor]:
    started = time.perf_counter()
    result = run(window)
    return time.perf_counter() - started, result


@torch.inference_mode()
def overhead(rounds: int) -> dict[str, float]:
    """What the engine adds to a step.

    `engine_ms_per_step`, `bare_ms_per_step`: medians of whole steps, the two ways in turns; their difference drowns in
    the noise of the networks' own time. So `added_us_per_step` repeats it with networks whose layers do nothing, which
    leaves hooks, scopes and the tensor work that both ways share; `overhead_percent` is that of a whole bare step.
    """
    prepared = Prepared()
    engine, bare = in_turns(prepared, rounds)
    without_layers(prepared.engine.model("dit"), prepared)
    without_layers(prepared.bare_dit, prepared)
    engine_empty, bare_empty = in_turns(prepared, 4 * rounds)
    added = min(engine_empty) - min(bare_empty)
    return {
        "engine_ms_per_step": round(statistics.median(engine) * 1e3, 3),
        "bare_ms_per_step": round(statistics.median(bare) * 1e3, 3),
        "added_us_per_step": round(added * 1e6, 1),
        "overhead_percent": round(added / statistics.median(bare) * 100, 3),
        "rounds": rounds,
    }


def in_turns(prepared: Prepared, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of a step by engine and by hand, alternating; the results must agree."""
    engine, bare = [], []
    for index in range(rounds + 2):
        ways = [prepared.by_engine, prepared.by_hand]
        results = {way.__name__: timed(way, prepared.window()) for way in (ways if index % 2 else ways[::-1])}
        (engine_seconds, by_engine), (bare_seconds, by_hand) = results["by_engine"], results["by_hand"]
        difference = (by_engine - by_hand).abs().max().item()
        if difference > 1e-5 * by_hand.abs().max().item():
            raise SystemExit(f"the two ways disagree by {difference}: the comparison means nothing")
        if index >= 2:  # warm
            engine.append(engine_seconds / STEPS)
            bare.append(bare_seconds / STEPS)
    return engine, bare


def without_layers(dit: Any, prepared: Prepared) -> None:
    """Let a transformer's parts return ready results: same calls and shapes, no work."""
    window = prepared.window()
    x, grid = dit.embed_patches(torch.cat([window.latents, window["condition"]], dim=1))
    times = dit.embed_time(torch.zeros(1))
    output = torch.zeros_like(window.latents)
    dit.embed_patches = lambda _: (x, grid)
    dit.embed_time = lambda _: times
    dit.head = Unchanged()
    dit.unpatchify = lambda *_: output
    dit.blocks = nn.ModuleList(Unchanged() for _ in dit.blocks)


class Unchanged(nn.Module):
    """A block that does nothing."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


def detection() -> dict[str, float]:
    """Seconds to recognise a T2V-14B file (28 GB, sparse), with the tables read before."""
    registry = Registry.builtin()
    row = next(row for row in registry.rows if row.name == "Wan2.1-T2V-14B")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        write_sparse(path, expected_shapes(row))
        started = time.perf_counter()
        registry.detect(path)
        seconds = time.perf_counter() - started
        size = path.stat().st_size
    return {"seconds": round(seconds, 4), "file_gb": round(size / 1e9, 2)}


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of these shapes in float16 whose data is a hole."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def run_memory() -> dict[str, Any]:
    """Peak memory and time of `omni run` with the demo."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "omniavatar", "run", "--json", "--quiet", "-o", f"{folder}/demo.mp4"]
        started = time.perf_counter()
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds = time.perf_counter() - started
    figures = json.loads(line)
    kept = ("peak_rss_mib", "frames", "windows", "transformer_calls", "load_seconds", "generate_seconds")
    return {"wall_seconds": round(seconds, 1), **{name: figures[name] for name in kept}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    result = {
        "machine": machine(),
        "overhead": overhead(arguments.rounds),
        "detection": detection(),
        "omni_run": run_memory(),
    }
    publish(result, arguments.output)


if __name__ == "__main__":
    main()
