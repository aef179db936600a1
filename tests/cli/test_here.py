"""`omni models list --here`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from omniavatar.checkpoints import Registry
from omniavatar.cli.here import Here, size
from omniavatar.resources import registry_tables
from tests.checkpoints.tiny import write_delta, write_safetensors, write_table
from tests.cli.conftest import Omni


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniavatar.locating.hub_cache", lambda: tmp_path / "hub")
    monkeypatch.delenv("OMNI_MODELS", raising=False)


def test_what_is_there_and_what_configurations_lack(omni: Omni, tmp_path: Path) -> None:
    write_delta(tmp_path / "models" / "Omni")
    outcome = omni("models", "list", "--here", "--models", tmp_path / "models")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == f"looked in {tmp_path / 'models'}"
    (row,) = [line for line in lines if "pytorch_model.pt" in line and str(tmp_path) in line]
    assert "OmniAvatar" in row
    assert "omniavatar-14b: lacks 12 of its files (omni models download omniavatar-14b)" in lines
    assert "  wav2vec2-base-960h" in lines
    assert not any(line.startswith("tiny") for line in lines)


def test_as_json_and_without_any_folder(omni: Omni) -> None:
    facts = json.loads(omni("models", "list", "--here", "--json").out)
    assert facts["models"] == []
    first = facts["configurations"][0]
    assert (first["name"], first["complete"]) == ("omniavatar-1.3b", False)
    assert first["models"][2] == {
        "wanted": "Wan2.1-T2V-1.3B/Wan2.1_VAE.pth",
        "found": [],
        "by": None,
        "missing": ["Wan2.1-T2V-1.3B/Wan2.1_VAE.pth"],
    }
    assert "looked in no folder" in omni("models", "list", "--here").out


def test_models_goes_with_here(omni: Omni) -> None:
    assert omni("models", "list", "--models", ".").error.startswith("--models goes with --here")


def test_a_configuration_that_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"decoder.conv.weight": torch.zeros(2, 2)}
    file = write_safetensors(tmp_path / "vae" / "x.safetensors", state)
    table = write_table(tmp_path / "t.toml", state, name="Wan2.1-VAE-small")
    (tmp_path / "one.yaml").write_text("models: [{path: a/b.pth, serves: {rows: [Wan2.1-VAE*]}}]\n")
    monkeypatch.setattr("omniavatar.cli.here.packaged_configs", lambda: {"one": tmp_path / "one.yaml"})
    here = Here.look(Registry([*registry_tables(), table]), [str(tmp_path)])
    assert list(here.verdicts()) == ["one: complete"]
    (model,) = here.facts()["models"]
    assert (model["path"], model["serves"], model["dtype"]) == (str(file), ["one"], "float32")
    assert here.facts()["configurations"][0]["models"][0]["by"] == "content"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(12, "12 B"), (253815318, "254 MB"), (16401356938, "16.4 GB"), (2_500, "2 kB"), (123e9, "123 GB")],
)
def test_sizes(nbytes: float, text: str) -> None:
    assert size(nbytes) == text
