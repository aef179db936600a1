"""The package by its front door: files that are recognised, presets and flags of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_fun.networks import CameraAdapter, ReferenceEmbedding
from omniavatar_fun.testing import CAMERA, CAMERA_DIT, CONTROL_DIT, CONTROL_DIT_22, REFERENCE
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.testing import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from omniavatar.cli import run_cli
from omniavatar.media.video import probe_video, read_video
from omniavatar.models.audio_adapter import AudioAdapter
from omniavatar.models.wan_dit import WanDiT
from omniavatar.resources import asset
from omniavatar.testing.tiny import ADAPTER, tiny_file, weights
from tests.media.samples import write_lossless
from tests.models.networks import randomized

PORTRAIT, SPEECH = asset("demo", "portrait.png"), asset("demo", "speech.flac")
SMALL = ("--size", "32x32", "--seconds", "0.36", "--schedule.steps", "2", "--quiet")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(folder: Path, network: nn.Module, part: dict[str, Tensor], heads: int = 2) -> str:
    """A transformer and what is beside it in one file, as published."""
    folder.mkdir()
    save_file(weights(network) | part, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_config": {"num_heads": heads}}))
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models of every kind, and a control video."""
    folder = tmp_path_factory.mktemp("files")
    reference = weights(randomized(ReferenceEmbedding(**REFERENCE), seed=1))
    adapter = weights(randomized(CameraAdapter(**CAMERA), seed=1))
    camera = {f"control_adapter.{name}": tensor for name, tensor in adapter.items()}
    experts = [randomized(WanDiT(**CONTROL_DIT_22), seed=seed) for seed in (2, 3)]
    pose = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    save_file(weights(ClipImageEncoder(**CLIP)), folder / "clip.safetensors")
    return {
        "v1": model(folder / "v1", randomized(ImageDiT(**CONTROL_DIT)), {}),
        "v1.1": model(folder / "v1.1", randomized(ImageDiT(**CONTROL_DIT)), reference),
        "high": model(folder / "high", experts[0], reference),
        "low": model(folder / "low", experts[1], {name: -tensor for name, tensor in reference.items()}),
        "camera": model(folder / "camera", randomized(ImageDiT(**CAMERA_DIT)), camera),
        "delta": delta(folder / "delta.safetensors"),
        "clip": str(folder / "clip.safetensors"),
        "pose": str(write_lossless(folder / "pose.mkv", pose)),
    }


def delta(path: Path) -> str:
    """What an OmniAvatar trained on Fun Control is beside it: LoRA on the blocks, a patch embedding, audio layers."""
    dit = randomized(ImageDiT(**CONTROL_DIT), seed=4)
    tensors = {f"patch_embedding.{name}": value for name, value in weights(dit.patch_embedding).items()}
    for name, module in dit.blocks.named_modules(prefix="blocks"):
        if isinstance(module, nn.Linear):
            tensors[f"{name}.lora_A.default.weight"] = torch.randn(2, module.in_features)
            tensors[f"{name}.lora_B.default.weight"] = torch.randn(module.out_features, 2) / 10
    save_file(tensors | weights(AudioAdapter(**ADAPTER)), path)
    return str(path)


def made(folder: Path, units: str, models: list[str], *arguments: Any) -> np.ndarray:
    """The pictures of a video by these models and the VAE and text encoder of the test networks."""
    tiny = [str(tiny_file(f"{name}.safetensors")) for name in ("vae", "text_encoder")]
    flags = [word for file in [*models, *tiny] for word in ("--model", file)]
    words = ["run", "--units", units, *flags, *SMALL, *map(str, arguments), "-o", str(folder / "out.mp4")]
    assert run_cli(words) == 0
    return read_video(folder / "out.mp4")


def test_a_control_video(files: dict[str, str], tmp_path: Path) -> None:
    models = [files["v1"], files["clip"]]
    free = made(tmp_path, "fun-control-video", models)
    follows = made(tmp_path, "fun-control-video", models, "--control-video", files["pose"])
    assert follows.shape == (9, 32, 32, 3)
    assert not np.array_equal(free, follows)


@pytest.mark.slow
def test_a_control_video_and_a_reference(files: dict[str, str], tmp_path: Path) -> None:
    models, control = [files["v1.1"], files["clip"]], ("--control-video", files["pose"])
    alone = made(tmp_path, "fun-reference-video", models, *control)
    shows = made(tmp_path, "fun-reference-video", models, *control, "--reference-image", PORTRAIT)
    assert not np.array_equal(alone, shows)


@pytest.mark.slow
def test_two_experts_with_their_own_reference_layers(files: dict[str, str], tmp_path: Path) -> None:
    common = ("--control-video", files["pose"], "--reference-image", PORTRAIT, "--image", PORTRAIT)
    plan, boundary = "fun-reference-video+moe", ("--moe.boundary", "0.9")
    twins = made(tmp_path, plan, [files["high"], f"dit2={files['high']}"], *common, *boundary)
    both = made(tmp_path, plan, [files["high"], f"dit2={files['low']}"], *common, *boundary)
    assert not np.array_equal(twins, both)


@pytest.mark.slow
def test_a_camera_by_direction_and_by_file(files: dict[str, str], tmp_path: Path) -> None:
    models, image = [files["camera"], files["clip"]], ("--image", PORTRAIT)
    still = made(tmp_path, "fun-camera-video", models, *image)
    left = made(tmp_path, "fun-camera-video", models, *image, "--camera", "Left", "--camera-speed", "0.1")
    (tmp_path / "path.txt").write_text(
        "\n".join(f"{n} 0.5 0.9 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 -{n}" for n in range(9))
    )
    along = made(tmp_path, "fun-camera-video", models, *image, "--camera-trajectory", tmp_path / "path.txt")
    assert not np.array_equal(still, left)
    assert not np.array_equal(still, along)


@pytest.mark.slow
def test_an_avatar_that_follows_a_control_video(files: dict[str, str], tmp_path: Path) -> None:
    """Several windows, sound, a cache, and a delta whose LoRA and audio layers go on the Fun base."""
    models = [files["v1.1"], files["clip"], files["delta"], str(tiny_file("wav2vec2"))]
    plan = "i2v-avatar+fun-control+fun-reference+teacache"
    windows = ("--fixed-frames.window-frames", "5", "--fixed-frames.overlap", "1")
    common = ("--image", PORTRAIT, "--audio", SPEECH, "--control-video", files["pose"], *windows)
    video = made(tmp_path, plan, models, *common)
    assert video.shape == (9, 32, 32, 3)
    assert probe_video(tmp_path / "out.mp4").has_audio
    assert not np.array_equal(video, made(tmp_path, f"{plan}-lora", models, *common))


def test_a_part_that_no_file_has_is_named(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    tiny = [word for name in ("vae", "text_encoder") for word in ("--model", str(tiny_file(f"{name}.safetensors")))]
    models = ["--model", files["v1"], "--model", files["clip"], *tiny]
    assert run_cli(["run", "--units", "fun-reference-video", *models, *SMALL]) == 2
    assert "unit 'fun-reference' needs a model for the role 'fun_reference'" in capsys.readouterr().err


def test_the_units_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    for unit, words in (
        ("fun-control", ("control_video", "unknown", "condition")),
        ("fun-reference", ("reference_image", "fun_reference", "image_features")),
        ("fun-camera", ("camera_trajectory", "LeftUp", "fun_camera")),
    ):
        assert run_cli(["units", "show", unit]) == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words)
