"""Detection reads headers only: time and memory on files of the published sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from omniavatar.checkpoints import Registry
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.models.wan_dit import WanDiT
from tests.checkpoints.tiny import DIT, write_row

MEASURE = """
import json, pathlib, sys, time
from omniavatar.checkpoints import Registry, read_header
{setup}
def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) / 1024
before = peak()
start = time.perf_counter()
answer = {expression}
seconds = time.perf_counter() - start
measured = dict(answer=answer, seconds=seconds, megabytes=peak() - before, torch="torch" in sys.modules)
print(json.dumps(measured))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured through Linux's /proc")


def measured(expression: str, setup: str = "") -> dict[str, Any]:
    """Evaluate in a fresh process; `megabytes` is the growth of its peak memory meanwhile.

    Not `ru_maxrss`: a child starts with its parent's.
    """
    command = [sys.executable, "-c", MEASURE.format(expression=expression, setup=setup)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "F16", width: int = 2) -> int:
    """A safetensors file whose data is a hole; returns its size in bytes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + width * int(torch.Size(shape).numel())
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    return path.stat().st_size


def shapes_of(numbers: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a transformer."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in WanDiT(**numbers).state_dict().items()}


def test_a_28_gb_file_is_recognised_at_once(tmp_path: Path) -> None:
    row = next(row for row in Registry.builtin().rows if row.name == "Wan2.1-T2V-14B")
    size = write_sparse(tmp_path / "model.safetensors", expected_shapes(row))
    assert size > 28e9
    result = measured(f"Registry.builtin().detect({str(tmp_path)!r}).row.name")
    assert result["answer"] == "Wan2.1-T2V-14B"
    assert result["seconds"] < 1
    assert result["megabytes"] < 100
    assert not result["torch"]


skips = pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 skips no data")


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [pytest.param(True, id="zip"), pytest.param(False, id="legacy", marks=skips)])
def test_pickled_data_is_not_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.ones(128, 2**20, dtype=torch.uint8)}, path, _use_new_zipfile_serialization=zipped)
    result = measured(f"read_header([pathlib.Path({str(path)!r})]).tensors['a'].shape", setup="import torch")
    assert result["answer"] == [128, 2**20]
    assert result["megabytes"] < 64


LOAD = """
import torch
from omniavatar.checkpoints import loading
from omniavatar.checkpoints.registry import Registry
loading.PORTION = 2**26
component = Registry([pathlib.Path({table!r})]).detect({file!r}).components[0]
torch.zeros(1).bfloat16()
loading.build_on_meta(component.spec.network, component.config)
"""


@pytest.mark.slow
def test_loading_holds_the_network_and_one_portion_of_its_file(tmp_path: Path) -> None:
    """Of a file of 2n bytes in another precision: n bytes of network; 3n would be in memory if all stayed mapped.

    The first network of a process is built before: it makes torch import 800 modules of its own, 75 to 80 MiB of them.
    """
    numbers = {**DIT, "dim": 1024, "ffn_dim": 4096, "num_layers": 6}
    table = write_row(tmp_path / "t.toml", shapes := shapes_of(numbers), numbers)
    size = write_sparse(tmp_path / "m.safetensors", shapes, "F32", 4) / 2**20
    setup = LOAD.format(table=str(table), file=str(tmp_path / "m.safetensors"))
    load = "len(loading.load_network([component], dtype=torch.bfloat16).state_dict())"
    result = measured(load, setup)
    assert result["answer"] == len(shapes)
    assert result["megabytes"] < size / 2 + 64 + 32 < 0.9 * size
    mapped = measured(load.replace("bfloat16", "float32"), setup)
    assert mapped["megabytes"] < 64, "what needs no change is not read before it is used"


def test_the_measure_sees_memory() -> None:
    assert measured("len(bytearray(b'x') * 80_000_000)")["megabytes"] > 70
