"""`omni run` with two transformers of the same names and shapes, told apart by the role that they are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omniavatar.cli import run_cli
from omniavatar.media.video import read_video
from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing import tiny
from omniavatar.testing.tiny import tiny_file
from tests.models.networks import noise, randomized

SMALL = (
    *(
        "--units",
        "wan-t2v-a14b",
        "--size",
        "32x32",
        "--seconds",
        "0.36",
        "--schedule.steps",
        "4",
        "--schedule.shift",
        "5",
    ),
    *("--fixed-frames.window-frames", "9", "--fixed-frames.overlap", "5", "--quiet"),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def expert(path: Path, seed: int) -> Path:
    """A small text-to-video transformer, of the names and shapes of the packaged tables' tiny one."""
    network = randomized(WanDiT(**{**tiny.DIT, "in_dim": tiny.BASE_IN_DIM}), seed=seed)
    save_file(network.state_dict(), path)
    return path


def lora(path: Path) -> Path:
    """A LoRA for one layer."""
    layer, width = "blocks.0.ffn.2", tiny.DIT["dim"]
    pair = {f"{layer}.lora_A.weight": noise(4, tiny.DIT["ffn_dim"]), f"{layer}.lora_B.weight": noise(width, 4)}
    save_file(pair, path)
    return path


def made(folder: Path, *models: str) -> np.ndarray:
    """The pictures of a video by these models and the VAE and text encoder of the test networks."""
    files = [*models, *(str(tiny_file(f"{name}.safetensors")) for name in ("vae", "text_encoder"))]
    path = folder / f"{len(list(folder.iterdir()))}.mp4"
    assert run_cli(["run", *(word for file in files for word in ("--model", file)), *SMALL, "-o", str(path)]) == 0
    return read_video(path)


@pytest.mark.slow
def test_the_second_transformer_and_its_lora_count(tmp_path: Path) -> None:
    high, low = (str(expert(tmp_path / f"{seed}.safetensors", seed)) for seed in (1, 2))
    twins = made(tmp_path, high, f"dit2={high}")
    both = made(tmp_path, high, f"dit2={low}")
    adapted = made(tmp_path, high, f"dit2={low}", f"dit2={lora(tmp_path / 'lora.safetensors')}")
    assert twins.shape == both.shape == (9, 32, 32, 3)
    assert not np.array_equal(twins, both)
    assert not np.array_equal(both, adapted)


def test_two_transformers_without_roles_are_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(expert(tmp_path / f"{seed}.safetensors", seed)) for seed in (1, 2)]
    assert run_cli(["run", *(word for file in files for word in ("--model", file)), *SMALL]) == 2
    assert "two models for the role 'dit'" in capsys.readouterr().err
