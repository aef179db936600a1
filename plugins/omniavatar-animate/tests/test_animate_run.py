"""The package by its front door: files that are recognised, the preset and flags of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omniavatar_animate.testing import random_adapter, write_tiny
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.testing import CLIP, IMAGE_DIT
from safetensors.torch import save_file

from omniavatar.cli import run_cli
from omniavatar.media.video import probe_video, read_video
from omniavatar.resources import asset
from omniavatar.testing.tiny import tiny_file, weights
from tests.media.samples import write_lossless
from tests.models.networks import noise, randomized

SMALL = ("--size", "32x32", "--schedule.steps", "1", "--prompt.length", "16", "--quiet")
WINDOWS = ("--fixed-frames.window-frames", "9", "--fixed-frames.overlap", "5")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a tiny model, what a video follows, and a LoRA in the layout of the published one."""
    folder = tmp_path_factory.mktemp("files")
    write_tiny(folder / "model", randomized(ImageDiT(**IMAGE_DIT)), random_adapter())
    save_file(weights(randomized(ClipImageEncoder(**CLIP))), folder / "model" / "clip.safetensors")
    generator = np.random.default_rng(0)
    for name, size in {"pose": 32, "face": 16, "background": 32, "mask": 32}.items():
        write_lossless(folder / f"{name}.mkv", generator.integers(0, 256, (13, size, size, 3), np.uint8))
    width, layer = IMAGE_DIT["dim"], "blocks.1.ffn.0"
    pair = {"A": noise(2, width), "B": noise(IMAGE_DIT["ffn_dim"], 2, seed=1)}
    tensors = {f"{layer}.lora_{part}.weight": tensor for part, tensor in pair.items()}
    torch.save({"state_dict": tensors}, folder / "relighting.ckpt")
    return folder


def video(folder: Path, *arguments: str | Path, units: str = "animate") -> np.ndarray:
    """The frames that the command makes in two windows."""
    models = ["model", *(str(tiny_file(f"{name}.safetensors")) for name in ("text_encoder", "vae"))]
    named = [word for model in models for word in ("--model", str(folder / model))]
    inputs = ["--image", str(asset("demo", "portrait.png")), "-o", str(folder / "out.mp4")]
    code = run_cli(["run", "--units", units, *named, *SMALL, *WINDOWS, *inputs, *map(str, arguments)])
    assert code == 0
    return read_video(folder / "out.mp4").astype(int)


@pytest.mark.slow
def test_a_picture_is_animated_and_put_in_place_of_somebody(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[tuple[str | Path, ...]] = []
    seen: list[np.ndarray] = []
    for more in (
        ("--seconds", "0.52"),
        ("--pose", folder / "pose.mkv"),
        ("--face", folder / "face.mkv"),
        ("--background", folder / "background.mkv", "--mask", folder / "mask.mkv"),
        ("--model", folder / "relighting.ckpt"),
    ):
        given.append(more)
        seen.append(video(folder, *(word for words in given for word in words)))
        assert seen[-1].shape == (13, 32, 32, 3)
        assert all(np.abs(seen[-1] - other).max() > 2 for other in seen[:-1])
    assert capsys.readouterr().err == ""
    assert not probe_video(folder / "out.mp4").has_audio


def test_bf16(folder: Path) -> None:
    shown = video(folder, "--pose", folder / "pose.mkv", "--face", folder / "face.mkv", "--dtype", "bf16")
    assert shown.shape == (13, 32, 32, 3)
    assert shown.std() > 1


def test_what_is_missing_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--model", str(tiny_file("vae.safetensors")), "--model", str(tiny_file("text_encoder.safetensors"))]
    plan = ["run", "--units", "animate", "--image", str(asset("demo", "portrait.png")), *tiny]
    for words, reason in (
        (["--model", str(folder / "model"), "--pose", "no.mp4"], "pose 'no.mp4' does not exist"),
        (["--model", str(tiny_file("transformer.safetensors"))], "needs a model for the role 'animate_adapter'"),
    ):
        assert run_cli([*plan, *words, "--seconds", "0.36"]) == 2
        complaint = capsys.readouterr().err
        assert reason in complaint.splitlines()[-1]


def test_the_units_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    for unit, words in {
        "animate-image": ("background", "mask", "reference_latent", "previous.frames"),
        "animate-motion": ("pose", "face_tokens", "animate_adapter"),
    }.items():
        assert run_cli(["units", "show", unit]) == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words)
    for preset in ("animate", "animate-avatar"):
        assert run_cli(["units", "plan", preset]) == 0
