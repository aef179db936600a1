"""The command line with GGUF files: what a file is, why one cannot be read, and videos made with one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omniavatar_gguf import write
from omniavatar_gguf.format import GgufFormat
from omniavatar_gguf.tensor import GgufTensor
from safetensors.torch import save_file

import tests.formats
from omniavatar.cli import run_cli
from omniavatar.media.video import read_video
from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing import tiny
from omniavatar.testing.tiny import tiny_file
from tests.models.networks import randomized

PUBLIC = Path(tests.formats.__file__).parent / "public"
BROKEN = sorted(
    str(path) for path in (PUBLIC / "broken").iterdir() if "gguf" in path.name and "control" not in path.name
)
SMALL = (
    *("--units", "prompt+fixed-frames+guidance+euler+transformer+vae-decode+write-video", "--size", "32x32"),
    *("--seconds", "0.2", "--euler.steps", "2", "--quiet"),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_what_a_file_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["models", "inspect", str(PUBLIC / "gguf" / "wan_Q8_0.gguf"), "--json"]) == 0
    ((component,),) = (found["components"] for found in json.loads(capsys.readouterr().out))
    assert component["role"] == "dit"
    assert component["dtypes"] == {"float16": 7, "float32": 25, "q8_0": 10}


@pytest.mark.slow
@pytest.mark.parametrize("file", BROKEN, ids=lambda file: Path(file).name)
def test_a_broken_file_is_one_line_and_exit_code_2(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["models", "inspect", file]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert file in line


def video(folder: Path, transformer: Path) -> np.ndarray:
    """The pictures of a video by this transformer and the VAE and text encoder of the test networks."""
    files = [transformer, *(tiny_file(f"{name}.safetensors") for name in ("vae", "text_encoder"))]
    path = folder / f"{transformer.stem}.mp4"
    assert run_cli(["run", *(word for file in files for word in ("--model", str(file))), *SMALL, "-o", str(path)]) == 0
    return read_video(path)


@pytest.mark.slow
def test_a_video_is_the_one_of_the_dense_numbers(tmp_path: Path) -> None:
    network = randomized(WanDiT(**{**tiny.DIT, "in_dim": tiny.BASE_IN_DIM}), seed=1)
    packed = tmp_path / "packed.gguf"
    write(packed, network.state_dict(), "Q4_0")
    reader = GgufFormat()
    weights = reader.read(packed, reader.read_header(packed).tensors, "cpu")
    dense = {name: weight.dense() if isinstance(weight, GgufTensor) else weight.clone() for name, weight in weights}
    save_file(dense, tmp_path / "dense.safetensors")
    save_file(network.state_dict(), tmp_path / "whole.safetensors")
    found, expected = video(tmp_path, packed), video(tmp_path, tmp_path / "dense.safetensors")
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, video(tmp_path, tmp_path / "whole.safetensors"))
