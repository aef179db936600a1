"""`omni run` with a text encoder whose tokenizer lies in its file: the video is that of the tokenizer as a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from omniavatar.checkpoints import Registry
from omniavatar.checkpoints.converting import Conversion
from omniavatar.checkpoints.sentencepiece import tokenizer
from omniavatar.media.video import read_video
from omniavatar.resources import registry_tables
from omniavatar.testing.tiny import FILES, tiny_file
from tests.checkpoints.test_sentencepiece import MODELS, written
from tests.cli.conftest import SMALL, Omni

ENCODER = next(name for name in FILES if name.startswith("text_encoder"))


def settings(folder: Path) -> str:
    """A configuration of the tiny avatar without its text encoder."""
    others = ", ".join(str(tiny_file(name)) for name in FILES if name != ENCODER)
    file = folder / "my.yaml"
    file.write_text(f"units: default\nmodels_dir: nowhere\nmodels: [missing.safetensors, {others}]\n")
    return str(file)


def frames(file: Path) -> bytes:
    found = read_video(file)
    return bytes(found.tobytes())


@pytest.mark.slow
def test_the_same_video_with_that_file_alone(omni: Omni, folder: Path) -> None:
    model = written(next(iter(MODELS.values())))
    registry = Registry(registry_tables())
    # As a folder beside the file.
    apart = folder / "apart"
    apart.mkdir()
    shutil.copy(tiny_file(ENCODER), apart / "encoder.safetensors")
    tokenizer(model, "here").save_pretrained(apart / "tokenizer")
    (apart / "tokenizer" / "spiece.model").write_bytes(model)
    # In the file, as ComfyUI has it.
    together = folder / "together" / "encoder.safetensors"
    Conversion.plan(apart / "encoder.safetensors", "comfy", registry).write(together)
    config = settings(folder)
    videos = {}
    for name, file in (("apart", apart / "encoder.safetensors"), ("together", together)):
        done = omni("run", "--config", config, "--model", file, *SMALL, "--prompt", "a person", "-o", f"{name}.mp4")
        assert done.code == 0, done.err
        assert "takes the place of missing.safetensors as 'text_encoder', which is not there" in done.err
        videos[name] = frames(folder / f"{name}.mp4")
    assert videos["apart"] == videos["together"]
    other = omni("run", "--config", config, "--model", together, *SMALL, "--prompt", "another", "-o", "other.mp4")
    assert other.code == 0
    assert frames(folder / "other.mp4") != videos["together"]  # the words count
