"""The package by its front door: files that are recognised, presets and flags of the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.testing import CLIP, FLF2V_DIT, IMAGE_DIT
from safetensors.torch import save_file
from torch import Tensor, nn

from omniavatar.cli import run_cli
from omniavatar.media.video import read_video
from omniavatar.models.audio_adapter import AudioAdapter
from omniavatar.plugins import discover
from omniavatar.resources import asset
from omniavatar.testing.tiny import ADAPTER, tiny_file, weights

PORTRAIT, SPEECH = asset("demo", "portrait.png"), asset("demo", "speech.flac")
SMALL = ("--size", "32x32", "--seconds", "0.36", "--schedule.steps", "1", "--quiet")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return path


def transformer(folder: Path, config: dict[str, Any]) -> Path:
    """A transformer as it is published, with the number of heads beside it."""
    torch.manual_seed(1)
    path = saved(folder / "diffusion_pytorch_model.safetensors", weights(ImageDiT(**config)))
    (folder / "config.json").write_text(json.dumps({"model_config": {"num_heads": 2}}))
    return path


def delta(folder: Path) -> Path:
    """What an OmniAvatar is on top of it: LoRA on the blocks, a patch embedding, audio layers."""
    torch.manual_seed(2)
    dit = ImageDiT(**IMAGE_DIT)
    tensors = {f"patch_embedding.{name}": value for name, value in weights(dit.patch_embedding).items()}
    for name, module in dit.blocks.named_modules(prefix="blocks"):
        if isinstance(module, nn.Linear):
            tensors[f"{name}.lora_A.default.weight"] = torch.randn(2, module.in_features)
            tensors[f"{name}.lora_B.default.weight"] = torch.randn(module.out_features, 2) / 10
    return saved(folder / "pytorch_model.safetensors", tensors | weights(AudioAdapter(**ADAPTER)))


@dataclass
class Models:
    """Files of a tiny model, and what making videos of them says."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def files(self, config: dict[str, Any] = IMAGE_DIT) -> list[Path]:
        """Transformer, image encoder with a text half, text encoder and VAE."""
        torch.manual_seed(3)
        clip = weights(ClipImageEncoder(**CLIP)) | {"textual.norm.weight": torch.ones(3)}
        own = [transformer(self.folder / "base", config), saved(self.folder / "clip" / "clip.safetensors", clip)]
        return [*own, *(Path(str(tiny_file(f"{name}.safetensors"))) for name in ("text_encoder", "vae"))]

    def run(self, files: list[Path], *arguments: str | Path) -> tuple[int, str]:
        """`omni run` with these models: exit code and complaint."""
        self.capsys.readouterr()
        models = [argument for file in files for argument in ("--model", str(file))]
        code = run_cli(["run", *models, *SMALL, *map(str, arguments)])
        return code, self.capsys.readouterr().err

    def video(self, files: list[Path], *arguments: str | Path) -> Tensor:
        """The frames (t h w c) in float32."""
        path = self.folder / "out.mp4"
        code, complaint = self.run(files, *arguments, "-o", path)
        assert (code, complaint) == (0, "")
        return torch.from_numpy(read_video(path).copy()).float()


@pytest.fixture
def models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Models:
    return Models(tmp_path, capsys)


def test_a_picture_is_animated(models: Models) -> None:
    video = models.video(models.files(), "--units", "i2v", "--image", PORTRAIT)
    assert video.shape == (9, 32, 32, 3)


def test_from_a_first_to_a_last_picture(models: Models) -> None:
    files = models.files(FLF2V_DIT)
    code, complaint = models.run(files, "--units", "i2v", "--image", PORTRAIT, "-o", models.folder / "x.mp4")
    assert code == 2
    assert complaint.strip() == (
        "omni: this transformer goes from a first to a last picture; give the last one with --end-image"
    )
    video = models.video(files, "--units", "i2v", "--image", PORTRAIT, "--end-image", PORTRAIT)
    assert len(video) == 9


@pytest.mark.slow
def test_an_avatar_on_an_image_to_video_transformer(models: Models) -> None:
    """The delta's LoRA and audio layers go on the base that animates pictures."""
    files = [*models.files(), delta(models.folder / "trained"), Path(str(tiny_file("wav2vec2")))]
    arguments = ("--units", "i2v-avatar", "--image", PORTRAIT, "--audio", SPEECH)
    short = ("--fixed-frames.window-frames", "5", "--fixed-frames.overlap", "1")
    video = models.video(files, *arguments, *short)
    assert video.shape == (9, 32, 32, 3)
    without = models.video(files, *arguments, *short, "--units", "i2v-avatar-lora")
    assert (video - without).abs().max() > 2


@pytest.mark.parametrize("config", [{"num_heads": 2}, {"model_config": {"num_heads": 2}}])
def test_a_folder_as_published_is_all_that_it_needs(models: Models, config: dict[str, Any]) -> None:
    """Shards of the transformer, the other networks and the number of heads in one folder."""
    _, *others = models.files()
    folder = models.folder / "published"
    tensors = weights(ImageDiT(**IMAGE_DIT))
    for number in (1, 2):
        part = {name: tensors[name] for name in sorted(tensors)[number - 1 :: 2]}
        saved(folder / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors", part)
    for file in others:
        shutil.copy(file, folder)
    shutil.copytree(tiny_file("tokenizer"), folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(config))
    heads = {
        detection.row.name: detection.components[0].config.get("num_heads")
        for detection in discover().registry().detect_all(folder)
    }
    assert heads["Wan-I2V"] == 2
    assert len(models.video([folder], "--units", "i2v", "--image", PORTRAIT)) == 9


def test_without_the_image_encoder_it_says_which_file_is_missing(models: Models) -> None:
    base, _, *others = models.files()
    code, complaint = models.run([base, *others], "--units", "i2v", "--image", PORTRAIT)
    assert code == 2
    assert "add models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth with --model" in complaint


def test_the_unit_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["units", "show", "image-to-video"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("end_image", "image_encoder", "image_features", "previous.frames"))
    assert run_cli(["units", "plan", "i2v-avatar"]) == 0
