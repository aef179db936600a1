"""The proof of the design: a package from outside adds a unit, a preset, a checkpoint and a command by pip alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omniavatar.media.video import read_video

PACKAGE = Path(__file__).parent / "third_party" / "omniavatar-sepia"
FAST = ["--seconds", "0.36", "--euler.steps", "1", "--fixed-frames.window-frames", "9", "--fixed-frames.overlap", "1"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, built and installed by pip."""
    folder = tmp_path_factory.mktemp("third-party")
    shutil.copytree(PACKAGE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(folder / "source")], check=True, timeout=100)
    return folder / "site"


def omni(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that sees the installed package."""
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    command = [sys.executable, "-m", "omniavatar", *arguments]
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
