"""The commands and the configuration of the README work as they stand, with the built-in avatar; here in small."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omniavatar.resources import asset
from omniavatar.testing.tiny import DIT, tiny_file
from tests.cli.conftest import Omni
from tests.test_docs import BLOCK

README = Path(__file__).parents[2] / "README.md"
SMALL = ("--seconds", "0.2", "--schedule.steps", "1", "--size", "32x32")
ONCE = ("--repeats", "1", "--warmup", "0")
ABSENT = re.compile(r"model files are missing|no model at")
"""What is said of weights that are not on this machine."""


def blocks(language: str) -> list[str]:
    return [block["text"] for block in BLOCK.finditer(README.read_text()) if block["language"] == language]


def commands() -> list[str]:
    return [line for text in blocks("sh") for line in text.splitlines() if line.startswith("omni ")]


def arguments_of(line: str) -> list[str]:
    """The words of a command, with files that exist in place of FILE and FOLDER."""
    models = str(tiny_file())  # a folder of models, in place of one that readers have
    given = {"FILE": str(asset("tiny", "vae.safetensors")), "FOLDER": models, "~/ComfyUI/models": models}
    _, *words = shlex.split(line, comments=True)
    return [given.get(word, word) for word in words if word != "..."]


@pytest.fixture
def desk(folder: Path) -> Path:
    """A folder with the files that the commands speak of."""
    shutil.copy(asset("demo", "portrait.png"), folder / "face.png")
    shutil.copy(asset("demo", "speech.flac"), folder / "me.mp3")
    (folder / "inference.yaml").write_text("text_encoder_path: pretrained_models/Wan2.1-T2V-14B/t5.pth\n")
    (folder / "samples.txt").write_text("A woman talks.@@face.png@@me.mp3\n")
    width = DIT["dim"]
    shapes = {"A": (4, width), "B": (width, 4)}
    pair = {f"blocks.0.self_attn.q.lora_{half}.weight": torch.zeros(shape) for half, shape in shapes.items()}
    for name in ("style", "other"):
        save_file(pair, folder / f"{name}.safetensors")
    (configuration,) = blocks("yaml")
    (folder / "my.yaml").write_text(configuration)
    return folder


@pytest.mark.parametrize("line", commands())
def test_a_command_does_what_it_says(omni: Omni, desk: Path, line: str) -> None:
    words = arguments_of(line)
    if "--gpus" in words or words[:2] == ["models", "download"]:  # what no test may fetch
        words.append("--help")
    elif words[0] in ("run", "bench"):
        words += [*SMALL, *(ONCE if words[0] == "bench" else ())]
    outcome = omni(*words)
    if "--help" not in words and any(word.startswith("omniavatar-") or word == "inference.yaml" for word in words):
        assert outcome.code == 2
        assert ABSENT.search(outcome.err), outcome.err
    else:
        assert outcome.code == 0, outcome.err


def test_the_configuration_adds_to_the_built_in_avatar(omni: Omni, desk: Path) -> None:
    outcome = omni("units", "plan", "--config", "my.yaml")
    assert outcome.code == 0, outcome.err
    first, *_ = outcome.out.splitlines()
    assert first == "default+smooth-borders+teacache"
    assert "schedule(steps=20" in outcome.out
    assert "guidance(scale=2.0, audio_scale=2.0" in outcome.out
    assert "teacache(threshold=0.03" in outcome.out
