"""What little memory costs: `python -m benchmarks.memory --size 14b --output benchmarks/results/memory-14b.json`.

Seconds of a denoising step (one transformer call of 720x400x105, so 30,375 tokens, with audio, bf16, random weights of
the true shapes) with all weights on the GPU, with `offload` under a cap on what torch may reserve there, with `fp8`,
and with `disk-offload` from a file of those shapes; then what it takes to load that file. Peaks are of torch's
allocator; what the CUDA context takes comes on top. All steps are timed in one process, one plan after another, the
first plan again at the end; loading has a process of its own each, for its peak of host memory. The result is written
after every row, so that whoever stops it keeps the rows that are done. On a machine without a GPU it runs the tiny
model, to show that it works; those times mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import publish
from benchmarks.scaling import FRAMES, HEIGHT, WIDTH, StepTimer
from benchmarks.synthetic import RandomCondition, RandomModels, RandomSound, RandomText
from omniavatar import builtin
from omniavatar.bench.machine import command, machine
from omniavatar.bench.memory import Host
from omniavatar.checkpoints import Bundle, Registry, fingerprint
from omniavatar.engine.engine import Engine
from omniavatar.engine.out_of_memory import host_peak
from omniavatar.engine.plan import Catalog, Plan, build_plan
from omniavatar.engine.scopes import Request
from omniavatar.units import AudioAdapter, Euler, Guidance, Schedule, Transformer

STEPS = 4
RESIDENT = "everything on the GPU"
FROM_FILE = "disk-offload"
SECONDS_TO_LOAD = 300
DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


@dataclass(frozen=True)
class Row:
    """One plan. units: what it adds. cap: gigabytes (10^9 bytes) that torch may reserve on the GPU, None for all."""

    name: str
    units: str = ""
    cap: float | None = None
    steps: int = STEPS


ROWS = (
    Row(RESIDENT),
    Row("offload, at most 8 GB", "offload", 8),
    Row("offload(resident_params=7e9), at most 21 GB", "offload(resident_params=7000000000)", 21),
    Row("fp8(mode=storage)", "fp8(mode=storage)"),
    Row("fp8", "fp8"),
    Row("fp8(scaling=tensor)", "fp8(scaling=tensor)"),
    Row("fp8+offload, at most 8 GB", "fp8+offload", 8),
    Row("fp8(mode=storage)+offload, at most 8 GB", "fp8(mode=storage)+offload", 8),
    Row("compile", "compile"),
    Row("compile+offload, at most 8 GB", "compile+offload", 8),
    Row("compile+fp8", "compile+fp8"),
    Row(f"{FROM_FILE}, at most 8 GB", FROM_FILE, 8, steps=3),
    Row(f"{RESIDENT}, again"),
)
LOADS = ("cuda", "cpu")


# Models --------------------------------------------------------------------------------------------------------------


class WithFile(RandomModels):
    """Random models whose transformer comes from a file."""

    def __init__(self, size: str, bundle: Bundle) -> None:
        super().__init__(size)
        self.bundle = bundle

    def load(self, role: str, **options: Any) -> Any:
        return self.bundle.load(role, **options) if role == "dit" else super().load(role, **options)

    def read_into(self, role: str, targets: dict[str, Tensor], conversions: Any = None) -> None:
        """See `Bundle.read_into`."""
        self.bundle.read_into(role, targets, conversions)


def write_transformer(folder: Path, size: str, device: torch.device, dtype: torch.dtype) -> None:
    """A safetensors file of the transformer's true shapes, written block by block, and a table that knows it."""
    models = RandomModels(size)
    skeleton = models.skeleton("dit", dtype=dtype)
    shapes = {name: tuple(weight.shape) for name, weight in skeleton.named_parameters()}
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    groups = dict.fromkeys(name.rpartition(".")[0] if "blocks." not in name else block_of(name) for name in shapes)
    with (folder / "dit.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for group in groups:
            for name, weight in models.weights("dit", [f"{group}.*"], device=device, dtype=dtype).items():
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                file.write(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    rows = [f'name = "random"\nhash = "{fingerprint(shapes)}"', f'network = "{models.spec.network}"']
    numbers = "\n".join(f"{key} = {json.dumps(value)}" for key, value in models.config("dit").items())
    table = f"[[checkpoint]]\n{rows[0]}\n[checkpoint.components.dit]\n{rows[1]}\n[checkpoint.components.dit.config]\n"
    (folder / "table.toml").write_text(table + numbers + "\n")


def block_of(name: str) -> str:
    """ "blocks.3.ffn.0.bias" -> "blocks.3"."""
    return ".".join(name.split(".")[:2])


def opened(folder: Path) -> Bundle:
    return Bundle.open([folder / "dit.safetensors"], Registry([folder / "table.toml"]))


# Steps ---------------------------------------------------------------------------------------------------------------


@contextmanager
def capped(device: torch.device, gigabytes: float | None) -> Iterator[None]:
    """Let torch reserve no more of the GPU."""
    if device.type != "cuda":
        yield
        return
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if gigabytes is None else gigabytes * 1e9 / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def measure(row: Row, size: str, device: torch.device, folder: Path) -> dict[str, Any]:
    """The steps of one plan."""
    on_gpu = device.type == "cuda"
    frames, height, width = (FRAMES, HEIGHT, WIDTH) if on_gpu else (9, 64, 64)
    catalog = Catalog({unit.name: unit for unit in builtin.omni_units()}, builtin.omni_presets())
    added = build_plan(row.units, catalog).units if row.units else ()
    conditions = (RandomText(), RandomCondition(), RandomSound(frames), AudioAdapter())
    plan = Plan([*conditions, Guidance(scale=1.0), Schedule(steps=row.steps), Euler(), Transformer(), *added])
    models = WithFile(size, opened(folder)) if row.units == FROM_FILE else RandomModels(size)
    timer, host = StepTimer(device), Host()
    started = time.perf_counter()
    engine = Engine(plan, models, device=device, dtype=precision(device), observers=[timer])
    engine.set_up()
    timer.now()
    set_up = time.perf_counter() - started
    setup_peak = peaks(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    engine.generate(Request(height=height, width=width, inputs={}))
    return {
        "seconds_per_step": round(statistics.median(timer.seconds[1:]), 4),
        "steps": [round(value, 4) for value in timer.seconds],
        "seconds_of_setup": round(set_up, 1),
        "setup": setup_peak,
        "steps_peak": peaks(device),
        "host_peak_gb": gigabytes(host.peak() or host_peak()),
    }


def peaks(device: torch.device) -> dict[str, float | None]:
    """The most that torch has allocated and reserved on the GPU since that was last set back."""
    if device.type != "cuda":
        return {"allocated_gb": None, "reserved_gb": None}
    return {
        "allocated_gb": gigabytes(torch.cuda.max_memory_allocated(device)),
        "reserved_gb": gigabytes(torch.cuda.max_memory_reserved(device)),
    }


def gigabytes(count: float | None) -> float | None:
    return None if count is None else round(count / 1e9, 2)


def precision(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


# Loading -------------------------------------------------------------------------------------------------------------


def load(target: str, device: torch.device, folder: Path) -> dict[str, Any]:
    """Load the file to the GPU, or to host memory, in this process."""
    bundle = opened(folder)
    place = device if target == "cuda" else torch.device("cpu")
    torch.zeros(1, device=place)
    host = Host()
    before, started = host.now() or host_peak(), time.perf_counter()
    network = bundle.load("dit", device=place, dtype=precision(device))
    total = sum(weight.nbytes for weight in network.parameters())
    if place.type == "cpu":
        sum(float(weight.flatten()[:: 4096 // weight.itemsize].sum()) for weight in network.parameters())
    else:
        torch.cuda.synchronize(place)
    peak = host.peak() or host_peak()
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "network_gb": gigabytes(total),
        "host_growth_gb": None if peak is None or before is None else gigabytes(peak - before),
        "host_peak_gb": gigabytes(peak),
        "device_peak": peaks(place),
    }


def load_elsewhere(target: str, size: str, folder: Path) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--size", size, "--folder", str(folder), "--load", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_LOAD, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# All rows ------------------------------------------------------------------------------------------------------------


def rows(size: str, device: torch.device, folder: Path, only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each row as it is done; one that fails says why."""
    work = [(row.name, row.cap, partial(measure, row, size, device, folder)) for row in ROWS]
    places = LOADS if device.type == "cuda" else LOADS[1:]
    work += [(f"loading to {place}", None, partial(load_elsewhere, place, size, folder)) for place in places]
    for name, cap, run in work:
        if not name.startswith(tuple(only)):
            continue
        result: dict[str, Any] = {"row": name, "cap_gb": cap}
        try:
            if (name.startswith((FROM_FILE, "loading"))) and not (folder / "table.toml").exists():
                write_transformer(folder, size, device, precision(device))
            with capped(device, cap):
                result |= {"status": "run", **run()}
        except Exception as error:
            result |= {"status": "failed", "reason": f"{type(error).__name__}: {error}".partition("\n")[0][:400]}
        yield result


def with_ratios(done: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with its time over that of the resident network; the mean if that was measured twice."""
    plain = [row["seconds_per_step"] for row in done if row["row"].startswith(RESIDENT) and row["status"] == "run"]
    if not plain:
        return list(done)
    base = statistics.mean(plain)
    return [
        {**row, "of_resident": round(row["seconds_per_step"] / base, 4)} if "seconds_per_step" in row else row
        for row in done
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("1.3b", "14b", "tiny"), default="14b")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names begin with one of these")
    parser.add_argument("--folder", type=Path, help="where the file of random weights lies or is kept (28 GB for 14b)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--load", choices=LOADS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    size = arguments.size if device.type == "cuda" else "tiny"
    if arguments.load:
        print(json.dumps(load(arguments.load, device, arguments.folder)))
        return
    folder = arguments.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": machine(device),
        "command": command("benchmarks.memory"),
        "work": {"size": size, "height": HEIGHT, "width": WIDTH, "frames": FRAMES, "calls_a_step": 1, "steps": STEPS},
    }
    done: list[dict[str, Any]] = []
    try:
        for row in rows(size, device, folder, arguments.only):
            done.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps({**result, "rows": with_ratios(done)}, indent=1) + "\n")
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    publish({**result, "rows": with_ratios(done)}, arguments.output)


if __name__ == "__main__":
    main()
