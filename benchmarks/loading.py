"""What it takes to load a transformer: `python -m benchmarks.loading --size 14b --output results/loading.json`.

A file of random weights of the true shapes is written in each form (bf16; fp8 with one scale for each matrix of the
blocks; the same with the `fp8` unit's layers; int8 with a scale for each output; GGUF Q8_0 if omniavatar-gguf is
installed), then loaded, each in a process of its own: seconds, growth and peak of host memory, peak of the device.
"again": the same file once more, when the system has it in memory. On a machine without a GPU it loads to host memory,
where weights stay mapped from the file, and reads one number of every page.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import gigabytes, peaks
from benchmarks.report import publish
from benchmarks.synthetic import RandomModels
from omniavatar.bench.machine import command, machine
from omniavatar.bench.memory import Host
from omniavatar.checkpoints import Bundle, Registry, fingerprint
from omniavatar.engine.out_of_memory import host_peak
from omniavatar.models.conversion import Conversions
from omniavatar.models.fp8 import Fp8Blocks

CODES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8"}
FORMS = ("bf16", "fp8-scaled", "int8", "gguf-q8_0")
WAYS = {"bf16": ("bf16", False), "bf16, rounded by fp8": ("bf16", True), "fp8-scaled": ("fp8-scaled", False)}
WAYS |= {"fp8-scaled, fp8's layers": ("fp8-scaled", True), "int8": ("int8", False), "gguf-q8_0": ("gguf-q8_0", False)}
"""By row, the form of the file, and whether the unit `fp8` converts it."""
LONGEST = 300
"""Seconds that loading may take."""


# Files ---------------------------------------------------------------------------------------------------------------


def entries(form: str, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    """The tensors of a file: name, shape, type."""
    for name, shape in shapes.items():
        if form == "bf16" or not (name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2):
            yield name, shape, torch.bfloat16
            continue
        yield name, shape, torch.float8_e4m3fn if form == "fp8-scaled" else torch.int8
        yield f"{name}_scale", () if form == "fp8-scaled" else (shape[0], 1), torch.float32


def write_safetensors(file: Path, form: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Random numbers of these shapes, tensor by tensor, without more memory than one takes."""
    header: dict[str, Any] = {}
    end = 0
    tensors = list(entries(form, shapes))
    for name, shape, dtype in tensors:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = torch.randn(2**22, generator=torch.Generator().manual_seed(0)) / 50
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape, dtype in tensors:
            values = torch.full((1,), 0.01) if name.endswith("_scale") else noise
            stored = (values * 100 if dtype.itemsize == 1 else values).to(dtype).view(torch.uint8).numpy()
            left = math.prod(shape) * dtype.itemsize
            while left > 0:
                left -= stream.write(stored[:left].tobytes())


def write_gguf(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """The same as Q8_0, through the plugin. Raises ImportError without it; the whole network is in memory meanwhile."""
    from omniavatar_gguf import write

    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        tensors[name] = torch.randn(shape, generator=torch.Generator().manual_seed(len(name))) / 50
    write(file, tensors, "Q8_0")


def write_model(folder: Path, form: str, size: str) -> Path:
    """A file in one form, and a table that knows it by the hash of the plain one."""
    folder.mkdir(parents=True, exist_ok=True)
    models = RandomModels(size)
    skeleton = models.skeleton("dit", dtype=torch.bfloat16)
    shapes = {name: tuple(weight.shape) for name, weight in skeleton.named_parameters()}
    file = folder / f"{form}.{'gguf' if form.startswith('gguf') else 'safetensors'}"
    if form.startswith("gguf"):
        write_gguf(file, shapes)
    else:
        write_safetensors(file, form, shapes)
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in models.config("dit").items()}
    lines = ["[[checkpoint]]", 'name = "random"', f'hash = "{fingerprint(shapes)}"', "[checkpoint.components.dit]"]
    lines += [f'network = "{models.spec.network}"', "[checkpoint.components.dit.config]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in config.items()]
    (folder / "table.toml").write_text("\n".join(lines) + "\n")
    return file


# Loading -------------------------------------------------------------------------------------------------------------


def load(file: Path, device: torch.device, *, fp8: bool) -> dict[str, Any]:
    """Load a file in this process."""
    from omniavatar.plugins import discover

    formats = discover().formats()
    bundle = Bundle.open([file], Registry([file.parent / "table.toml"], formats=formats))
    torch.zeros(1, device=device)
    host = Host()
    before, started = host.now() or host_peak(), time.perf_counter()
    steps = [Fp8Blocks("storage", "row")] if fp8 else []
    network = bundle.load("dit", device=device, dtype=torch.bfloat16, conversions=Conversions(steps, device))
    if device.type == "cpu":
        for weight in network.parameters():
            weight.contiguous().view(torch.uint8).flatten()[::4096].sum()
    else:
        torch.cuda.synchronize(device)
    seconds, peak = time.perf_counter() - started, host.peak() or host_peak()
    return {
        "seconds": round(seconds, 2),
        "file_gb": gigabytes(file.stat().st_size),
        "network_gb": gigabytes(sum(weight.nbytes for weight in network.parameters())),
        "host_growth_gb": None if peak is None or before is None else gigabytes(peak - before),
        "host_peak_gb": gigabytes(peak),
        "device_peak": peaks(device),
    }


def load_elsewhere(file: Path, fp8: bool) -> dict[str, Any]:
    """The same in a process of its own."""
    arguments = [sys.executable, "-m", "benchmarks.loading", "--load", str(file), *(["--fp8"] if fp8 else [])]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=LONGEST, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def rows(folder: Path, size: str, only: list[str]) -> Iterator[dict[str, Any]]:
    """Each way as it is done, twice; one that fails says why."""
    for name, (form, fp8) in WAYS.items():
        if not name.startswith(tuple(only)):
            continue
        try:
            files = list(folder.glob(f"{form}.*")) or [write_model(folder, form, size)]
            for again in ("", ", again"):
                yield {"row": f"{name}{again}", "status": "run", **load_elsewhere(files[0], fp8)}
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0][:400]
            yield {"row": name, "status": "failed", "reason": reason}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("1.3b", "14b", "tiny"), default="1.3b")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names begin with one of these")
    parser.add_argument("--folder", type=Path, help="where the files of random weights lie or are kept")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fp8", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if arguments.load:
        print(json.dumps(load(arguments.load, device, fp8=arguments.fp8)))
        return
    folder = arguments.folder or Path(tempfile.mkdtemp())
    result = {
        "machine": machine(device),
        "command": command("benchmarks.loading"),
        "work": {"size": arguments.size, "dtype": "bfloat16", "device": device.type},
    }
    done: list[dict[str, Any]] = []
    try:
        for row in rows(folder, arguments.size, arguments.only):
            done.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    publish({**result, "rows": done}, arguments.output)


if __name__ == "__main__":
    main()
