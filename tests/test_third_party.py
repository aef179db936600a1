"""The proof of the design: packages from outside, installed by pip alone, touch no file of the program.

One adds a unit, a preset, a checkpoint and a command; another a transformer with a layer more inside its blocks, whose
file lies over that of a base model.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from omniavatar.media.video import read_video
from omniavatar.testing.tiny import DIT, tiny_file, write_original

PACKAGES = Path(__file__).parent / "third_party"
FAST = [
    "--seconds",
    "0.36",
    "--schedule.steps",
    "1",
    "--fixed-frames.window-frames",
    "9",
    "--fixed-frames.overlap",
    "1",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first package."""
    return installed("omniavatar-sepia", tmp_path_factory.mktemp("sepia"))


@pytest.fixture(scope="module")
def palette(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the second."""
    return installed("omniavatar-palette", tmp_path_factory.mktemp("palette"))


def installed(name: str, folder: Path) -> Path:
    """A folder with a package, built and installed by pip."""
    shutil.copytree(PACKAGES / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(folder / "source")], check=True, timeout=100)
    return folder / "site"


def omni(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that sees the installed package."""
    return python(site, "-m", "omniavatar", *arguments)


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that sees the installed package."""
    found = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": found, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


def brownness(video: Path) -> float:
    """Red minus blue, 0..255, over the whole video."""
    red, _, blue = read_video(video).reshape(-1, 3).mean(axis=0)
    return float(red - blue)


@pytest.mark.slow
def test_a_plugin_unit_runs_by_name(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "brown.mp4"
    done = omni(site, "run", "--units", "default+sepia(strength=1)", *FAST, "-o", str(path))
    assert done.returncode == 0, done.stderr
    assert brownness(path) > 20, "grey times (1, 0.8, 0.6)"


@pytest.mark.slow
def test_its_flags_preset_and_model_work_like_built_in_ones(site: Path, tmp_path: Path) -> None:
    model = tmp_path / "tone.safetensors"
    save_file({"colour": torch.tensor([0.2, 0.2, 1.0])}, model)
    path = tmp_path / "blue.mp4"
    chosen = ["--units", "old-film", "--config", "tiny", "--model", str(model)]
    done = omni(site, "run", *chosen, *FAST, "--sepia.strength", "1", "--film", "dark", "--json", "-o", str(path))
    assert done.returncode == 0, done.stderr
    assert "sepia" in json.loads(done.stdout)["units"], "the option is stronger than the preset's 0.5"
    assert brownness(path) < -10
    inspected = omni(site, "models", "inspect", str(model))
    assert inspected.returncode == 0
    assert "sepia-tone" in inspected.stdout


@pytest.mark.slow
def test_its_settings_are_checked_and_documented(site: Path, tmp_path: Path) -> None:
    done = omni(site, "run", "--units", "default+sepia(strength=7)", "-o", str(tmp_path / "no.mp4"))
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "strength" in done.stderr
    shown = omni(site, "units", "show", "sepia").stdout
    assert "0 leaves the colours, 1 replaces them" in shown
    assert "film" in shown


def test_it_is_listed_and_adds_a_command(site: Path) -> None:
    listed = omni(site, "plugins", "list").stdout
    assert "1.2.3" in listed
    assert "omni_units" in listed
    assert omni(site, "sepia-info").stdout.strip() == "the colour of old photographs"


# A layer more inside the blocks ---------------------------------------------------------------------------------------

PLAN = "prompt+fixed-frames+guidance+euler+transformer+vae-decode+write-video"
SMALL = [*FAST, "--size", "32x32", "--quiet"]


def layers() -> dict[str, Tensor]:
    """A file of palette layers for the tiny transformer."""
    torch.manual_seed(3)
    width = DIT["dim"]
    state = {"palette_embedding.weight": torch.randn(width, 3), "palette_embedding.bias": torch.zeros(width)}
    for index in range(DIT["num_layers"]):
        block = f"blocks.{index}"
        for name in "qkvo":
            state[f"{block}.palette_attn.{name}.weight"] = torch.randn(width, width) / width**0.5
            state[f"{block}.palette_attn.{name}.bias"] = torch.zeros(width)
        for name in ("palette_attn.norm_q", "palette_attn.norm_k", "norm_palette"):
            state[f"{block}.{name}.weight"] = torch.ones(width)
        state[f"{block}.norm_palette.bias"] = torch.zeros(width)
    return state


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Options for the models: a base as it is published with what it works with, and the layers."""
    folder = tmp_path_factory.mktemp("models")
    write_original(folder)
    save_file(layers(), folder / "palette.safetensors")
    base = [
        folder / "Wan2.1-T2V-tiny" / "*.safetensors",
        tiny_file("vae.safetensors"),
        tiny_file("text_encoder.safetensors"),
    ]
    return {
        "base": [word for file in base for word in ("--model", str(file))],
        "layers": ["--model", str(folder / "palette.safetensors")],
    }


def painted(site: Path, path: Path, models: list[str], units: str, *colours: str) -> np.ndarray:
    """The frames of a video with these colours."""
    given = ["--palette", f"[{', '.join(map(repr, colours))}]"] if colours else []
    tokenizer = ["--prompt.tokenizer", str(tiny_file("tokenizer")), "--prompt", "hi"]
    done = omni(site, "run", "--units", units, *models, *SMALL, *tokenizer, *given, "-o", str(path))
    assert done.returncode == 0, done.stderr
    return read_video(path)


@pytest.mark.slow
def test_layers_inside_the_blocks_are_loaded_over_a_base(
    palette: Path, models: dict[str, list[str]], tmp_path: Path
) -> None:
    both, units = [*models["layers"], *models["base"]], f"{PLAN}+palette"
    red = painted(palette, tmp_path / "red.mp4", both, units, "#ff0000")
    assert not np.array_equal(red, painted(palette, tmp_path / "blue.mp4", both, units, "#0000ff", "#2040ff"))
    plain = painted(palette, tmp_path / "plain.mp4", models["base"], PLAN)
    assert np.array_equal(painted(palette, tmp_path / "none.mp4", both, units), plain), "without colours it is the base"
    assert np.array_equal(painted(palette, tmp_path / "off.mp4", both, f"{units}+offload", "#ff0000"), red)
    shown = omni(palette, "models", "inspect", models["layers"][1])
    assert "PaletteDiT over the base" in shown.stdout


@pytest.mark.slow
def test_layers_without_their_base_or_a_base_without_them_are_refused(
    palette: Path, models: dict[str, list[str]], tmp_path: Path
) -> None:
    for given, reason in (
        (models["base"], "the transformer has no palette layers"),
        (models["layers"], "needs a model"),
    ):
        done = omni(palette, "run", "--units", f"{PLAN}+palette", *given, *SMALL, "-o", str(tmp_path / "no.mp4"))
        assert done.returncode == 2
        assert done.stderr.strip().count("\n") == 0
        assert reason in done.stderr


@pytest.mark.slow
def test_the_unit_keeps_its_promises(palette: Path) -> None:
    program = """
from omniavatar.testing import check_unit
from omniavatar.testing.tiny import DIT
from omniavatar_palette.network import PaletteDiT
from omniavatar_palette.unit import Palette

networks = {"dit": (PaletteDiT, {**DIT, "colour_dim": 3})}
check_unit(Palette, networks=networks, inputs={"palette": ["#ff8000", "#001020"]})
"""
    done = python(palette, "-c", program)
    assert done.returncode == 0, done.stderr
