"""`omni env`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from omniavatar import __version__
from tests.cli.conftest import Omni


def test_versions_and_hardware_for_a_report(omni: Omni, install: Callable[[str, str], None]) -> None:
    install("my_plugin", "raise RuntimeError('never')")
    facts = json.loads(omni("env", "--json").out)
    assert (facts["omniavatar"], facts["torch"]) == (__version__, torch.__version__)
    assert facts["plugins"]["my_plugin"] == "1.2 (left out)"
    assert {"transformers", "safetensors"} <= set(facts["libraries"])
    assert "." in facts["ffmpeg"]
    assert facts["cores"] > 0
    lines = omni("env").out.splitlines()
    assert lines[0].split() == ["omniavatar", __version__]
    assert any(line.startswith("plugins ") and "my_plugin 1.2 (left out)" in line for line in lines)


def test_a_report_names_no_place(omni: Omni) -> None:
    out = omni("env").out
    assert str(Path.home()) not in out
    assert str(Path(__file__).parents[2]) not in out
