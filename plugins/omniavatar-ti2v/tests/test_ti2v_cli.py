"""`omni run` with the preset `wan-ti2v`, on small files that are recognised like the published ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omniavatar_ti2v.testing import DIT, VAE38
from omniavatar_ti2v.wan_vae38 import WanVAE38
from safetensors.torch import save_file
from torch import nn

from omniavatar.cli import run_cli
from omniavatar.media.video import probe_video
from omniavatar.models.audio_adapter import AudioAdapter
from omniavatar.models.wan_dit import WanDiT
from omniavatar.resources import asset
from omniavatar.testing import tiny
from omniavatar.testing.tiny import tiny_file
from tests.models.networks import randomized

SMALL = (
    "--seconds",
    "0.52",
    "--schedule.steps",
    "1",
    "--fixed-frames.window-frames",
    "9",
    "--fixed-frames.overlap",
    "5",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write(path: Path, *networks: nn.Module) -> Path:
    """A file with the weights of all of these."""
    state = {name: tensor for network in networks for name, tensor in randomized(network).state_dict().items()}
    save_file(state, path)
    return path


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """Options that name the files of a small talking TI2V model."""
    folder = tmp_path / "models"
    folder.mkdir()
    # The head size of the published models does not divide this width.
    (folder / "config.json").write_text(json.dumps({"model_config": {"num_heads": DIT["num_heads"]}}))
    files = [
        write(folder / "transformer.safetensors", WanDiT(**DIT), AudioAdapter(**tiny.ADAPTER)),
        write(folder / "vae.safetensors", WanVAE38(**VAE38)),
        tiny_file("text_encoder.safetensors"),
        tiny_file("wav2vec2"),
    ]
    return [word for file in files for word in ("--model", str(file))]


def run(*arguments: object) -> int:
    return run_cli(["run", *(str(argument) for argument in arguments)])


def test_a_picture_comes_to_life(models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ("--image", asset("demo", "portrait.png"), "--audio", asset("demo", "speech.flac"), "--prompt", "hi")
    path = tmp_path / "talk.mp4"
    plan = ("--units", "wan-ti2v+audio+audio-adapter-soundtrack", "--size", "64x32", *SMALL)
    assert run(*models, *plan, *inputs, "-o", path, "--quiet") == 0, capsys.readouterr().err
    info = probe_video(path)
    assert (info.width, info.height, info.frames, info.has_audio) == (64, 32, 13, True)


def test_bad_sizes_are_named(models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "talk.mp4"
    assert run(*models, "--units", "wan-ti2v", "--size", "48x64", *SMALL, "-o", path, "--quiet") == 2
    assert "the size 48x64 is not made of positive multiples of 32" in capsys.readouterr().err
    assert not path.exists()
