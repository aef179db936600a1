"""How much several GPUs help: `python -m benchmarks.scaling --size 14b --output results.json`.

For every number of ranks and every way of using them: the seconds of a denoising step (joint guidance, so two
transformer calls) of one 720x400x105 window with random weights, the speed-up over one rank, the efficiency, and the
bytes that a rank sends per step against what the link moves in that time. Ranks beyond the GPUs of this machine stay in
the table as "not run". On a machine without a GPU it runs the tiny model with gloo, to show that it works; those times
mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from benchmarks.report import publish
from benchmarks.synthetic import RandomCondition, RandomModels, RandomSound, RandomText
from omniavatar.bench.machine import command, machine
from omniavatar.distributed.groups import Group
from omniavatar.distributed.world import World, joined
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.engine.scopes import Request, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.testing.models import WAN
from omniavatar.units import (
    AudioAdapter,
    Euler,
    Fsdp,
    Guidance,
    GuidanceParallel,
    Schedule,
    SequenceParallel,
    Transformer,
    VaeParallel,
)

HEIGHT, WIDTH, FRAMES = 400, 720, 105
STEPS = 4
RANKS = (1, 2, 4, 8)
PORT = 29611
ONE_IN_A_GROUP = "one rank, process group and sequence-parallel"


@dataclass(frozen=True)
class Strategy:
    """One way of using some ranks. fsdp: with sharded weights; vae: of decoding a window instead of a step."""

    guidance: int
    ring: int
    ulysses: int
    fsdp: bool = False
    vae: bool = False

    @property
    def ranks(self) -> int:
        return self.guidance * self.ring * self.ulysses

    @property
    def name(self) -> str:
        if self.vae:
            return f"decoding, vae-parallel of {self.ranks}" if self.ranks > 1 else "decoding, one rank"
        parts = [f"{axis}={degree}" for axis, degree in asdict(self).items() if degree > 1]
        return " ".join([*parts, *["fsdp"] * self.fsdp]) or "one rank"

    def units(self) -> list[PipelineUnit]:
        made: list[PipelineUnit] = []
        if self.guidance > 1:
            made.append(GuidanceParallel(degree=self.guidance))
        if self.ring * self.ulysses > 1 or (distributed.is_initialized() and self.ranks == 1):
            made.append(SequenceParallel(ulysses=self.ulysses, ring=self.ring))
        if self.fsdp:
            made.append(Fsdp())
        return made

    def sent_per_step(self, dim: int, layers: int, tokens: int, branches: int = 2, width: int = 2) -> Sent:
        """What one rank sends in a step: q, k, v and the result of every attention, keys and values around the ring,
        the gathered output, the velocities of the branches. `width`: bytes of a number."""
        calls = math.ceil(branches / self.guidance)
        local = -(-tokens // (self.ring * self.ulysses)) * dim * width
        gathered = tokens * 64 * width * (1 - 1 / (self.ring * self.ulysses))
        velocities = tokens * 64 * 4 * (self.guidance > 1)
        return Sent(
            ulysses=calls * layers * 4 * local * (self.ulysses - 1) / self.ulysses,
            ring=calls * layers * 2 * local * (self.ring - 1),
            results=calls * gathered + velocities,
        )


@dataclass(frozen=True)
class Sent:
    """Bytes that a rank sends in a step: for Ulysses, around the ring, and results."""

    ulysses: float
    ring: float
    results: float

    @property
    def total(self) -> float:
        return self.ulysses + self.ring + self.results


def strategies(ranks: int, heads: int) -> list[Strategy]:
    """All grids of this many ranks that fit the heads, sharded weights, and decoding."""
    grids = [
        Strategy(guidance, ring, ranks // guidance // ring)
        for guidance in (1, 2)
        if ranks % guidance == 0
        for ring in range(1, ranks // guidance + 1)
        if ranks // guidance % ring == 0 and heads % (ranks // guidance // ring) == 0
    ]
    sharded = [replace(grids[0], fsdp=True)] if ranks > 1 else []
    return [*grids, *sharded, Strategy(1, 1, ranks, vae=True)]


class StepTimer:
    """Seconds of every step, with the device waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @hookimpl
    def before_step(self, step: Step) -> None:
        self.started = self.now()

    @hookimpl(trylast=True)
    def after_step(self, step: Step) -> None:
        self.seconds.append(self.now() - self.started)


def measure(world: World, strategy: Strategy, size: str, device: torch.device) -> dict[str, Any]:
    """One strategy on this rank."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    frames, height, width = (FRAMES, HEIGHT, WIDTH) if device.type == "cuda" else (9, 64, 64)
    conditions: list[PipelineUnit] = [RandomText(), RandomCondition(), RandomSound(frames), AudioAdapter()]
    timer = StepTimer(device)
    plan = Plan([*conditions, Guidance(), Schedule(steps=STEPS), Euler(), Transformer(), *strategy.units()])
    models = RandomModels(size)
    engine = Engine(plan, models, device=device, dtype=dtype, observers=[timer], world=world)
    engine.generate(Request(height=height, width=width, inputs={}))
    seconds = statistics.median(timer.seconds[1:])
    dit = models.config("dit")
    tokens = WAN.latent_frames(frames) * (height // 16) * (width // 16)
    sent = strategy.sent_per_step(dit["dim"], dit["num_layers"], tokens).total
    rate = link_rate(engine.groups.world, device)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {
        "seconds_per_step": round(seconds, 4),
        "steps": [round(value, 4) for value in timer.seconds],
        "tokens": tokens,
        "sent_mb_per_step": round(sent / 1e6, 1),
        "link_gb_per_second": rate and round(rate / 1e9, 1),
        "share_on_link": rate and round(sent / rate / seconds, 4),
        "peak_gib": peak and round(peak, 1),
    }


def measure_decoding(world: World, device: torch.device) -> dict[str, Any]:
    """Seconds of decoding a window on this rank and its neighbours, each with some rows of the pictures."""
    cuda = device.type == "cuda"
    units: list[PipelineUnit] = [VaeParallel()] + ([SequenceParallel()] if world.size > 1 else [])
    dtype = torch.bfloat16 if cuda else torch.float32
    engine = Engine(Plan(units), RandomModels("tiny", with_vae=True), device=device, dtype=dtype, world=world)
    engine.set_up()
    frames, height, width = (WAN.latent_frames(FRAMES), HEIGHT // 8, WIDTH // 8) if cuda else (2, 8, 8)
    latents = torch.randn(1, 16, frames, height, width, device=device)
    timer, vae = StepTimer(device), engine.model("vae")
    for _ in range(STEPS):
        started = timer.now()
        with torch.inference_mode():
            vae.decode(latents, latents_per_pass=4)
        timer.seconds.append(timer.now() - started)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if cuda else None
    seconds = round(statistics.median(timer.seconds[1:]), 4)
    return {"seconds_of_decoding": seconds, "peak_gib": peak and round(peak, 1)}


def link_rate(group: Group, device: torch.device, megabytes: int = 256) -> float | None:
    """Bytes a second that a rank sends in an all-to-all among all ranks."""
    if group.size == 1 or device.type != "cuda":
        return None
    data = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=device)
    received = torch.empty_like(data)
    seconds = []
    for _ in range(6):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        distributed.all_to_all_single(received, data, group=group.handle)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return data.numel() * (group.size - 1) / group.size / statistics.median(seconds[2:])


def worker(arguments: argparse.Namespace) -> None:
    """One rank of one strategy; the first prints the result as JSON."""
    strategy = Strategy(*arguments.strategy[:3], *map(bool, arguments.strategy[3:]))
    rank = arguments.rank
    cuda = torch.cuda.is_available()
    device = torch.device(f"cuda:{rank}" if cuda else "cpu")
    world = World(rank, strategy.ranks, local_rank=rank, local_size=strategy.ranks, port=arguments.port)
    with joined(world, device, 300), group_of_one(arguments, device.type):
        result = measure_decoding(world, device) if strategy.vae else measure(world, strategy, arguments.size, device)
    if rank == 0:
        print(json.dumps(result))


@contextmanager
def group_of_one(arguments: argparse.Namespace, device_type: str) -> Iterator[None]:
    """A process group with one member, if asked for: what the parallel path costs by itself."""
    if not arguments.with_group:
        yield
        return
    address = f"tcp://127.0.0.1:{arguments.port}"
    distributed.init_process_group("nccl" if device_type == "cuda" else "gloo", address, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def run_ranks(strategy: Strategy, size: str, port: int, with_group: bool = False) -> dict[str, Any]:
    """Start the ranks of one strategy and return what the first one measured."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--size", size, "--port", str(port)]
    command += ["--strategy", *(str(int(value)) for value in asdict(strategy).values())]
    command += ["--with-group"] * with_group
    ranks = [
        subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(strategy.ranks)
    ]
    output = ranks[0].communicate()[0]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        return {"status": f"failed with exit codes {codes}"}
    return {"status": "run", **json.loads(output.splitlines()[-1])}


def table(size: str, ranks: Sequence[int], heads: int, only: str) -> list[dict[str, Any]]:
    """All rows whose names contain `only`; those that this machine cannot run are marked."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 2
    rows: list[dict[str, Any]] = []
    wanted = [strategy for count in ranks for strategy in strategies(count, heads) if only in strategy.name]
    for index, strategy in enumerate(wanted):
        row: dict[str, Any] = {"strategy": strategy.name, "ranks": strategy.ranks}
        row |= run_ranks(strategy, size, PORT + index) if strategy.ranks <= available else {"status": "not run"}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    if only in ONE_IN_A_GROUP:
        extra = {"strategy": ONE_IN_A_GROUP, "ranks": 1}
        rows.append(extra | run_ranks(Strategy(1, 1, 1), size, PORT - 1, with_group=True))
    for measured in ("seconds_per_step", "seconds_of_decoding"):
        alone = next((row[measured] for row in rows if row["ranks"] == 1 and measured in row), None)
        for row in rows:
            if alone and measured in row:
                row["speed_up"] = round(alone / row[measured], 3)
                row["efficiency"] = round(row["speed_up"] / row["ranks"], 3)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("1.3b", "14b", "tiny"), default="14b")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=PORT, help=argparse.SUPPRESS)
    parser.add_argument("--with-group", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--strategy", type=int, nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.strategy:
        worker(arguments)
        return
    heads = {"1.3b": 12, "14b": 40, "tiny": 2}[arguments.size]
    result = {
        "machine": machine("cuda" if torch.cuda.is_available() else "cpu"),
        "command": command("benchmarks.scaling"),
        "work": {"size": arguments.size, "height": HEIGHT, "width": WIDTH, "frames": FRAMES, "branches": 2},
        "rows": table(arguments.size, arguments.ranks, heads, arguments.only),
    }
    publish(result, arguments.output)


if __name__ == "__main__":
    main()
