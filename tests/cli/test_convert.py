"""`omni models convert`."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from tests.cli.conftest import Omni

T2V = Path(__file__).parents[1] / "formats" / "public" / "base" / "names_t2v" / "diffusion_pytorch_model.safetensors"


def test_convert(omni: Omni, folder: Path) -> None:
    dry = omni("models", "convert", T2V, "x.safetensors", "--to", "diffusers", "--dry-run")
    assert dry.code == 0
    assert dry.out.splitlines()[0].startswith(f"{T2V} is Wan; x.safetensors would have ")
    assert " -> " in dry.out.splitlines()[1]
    assert not list(folder.iterdir())
    done = omni("models", "convert", T2V, "x.safetensors", "--to", "diffusers")
    assert done.out.startswith("x.safetensors  (Wan, ")
    assert "blocks.0.attn1.to_q.weight" in load_file(folder / "x.safetensors")
    again = omni("models", "convert", T2V, "x.safetensors", "--to", "comfy")
    assert again.error.startswith("x.safetensors is there already")
    assert omni("models", "convert", T2V, "x.safetensors", "--to", "comfy", "--force", "--quiet").out == ""
    assert [path.name for path in folder.iterdir()] == ["x.safetensors"]


def test_bad_input_is_one_line(omni: Omni, folder: Path) -> None:
    assert "no form 'ggml'" in omni("models", "convert", T2V, "x.safetensors", "--to", "ggml").error
    assert "no model file at nothing" in omni("models", "convert", "nothing", "x.safetensors", "--to", "comfy").error
