from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from omniavatar.cli.models import models
from omniavatar.errors import CheckpointError
from tests.checkpoints.tiny import write_delta, write_safetensors


def omni(*arguments: str | Path) -> Result:
    return CliRunner().invoke(models, [str(argument) for argument in arguments])


def test_list() -> None:
    result = omni("list")
    assert result.exit_code == 0
    assert "Wan2.1-VAE" in result.output
    assert "14.29 B" in result.output


def test_checkpoints_of_tests_are_listed_on_demand() -> None:
    assert "omniavatar-test" not in omni("list").output
    assert "omniavatar-test" in omni("list", "--all").output


def test_list_as_json() -> None:
    rows = {row["name"]: row for row in json.loads(omni("list", "--json").output)}
    assert rows["Wan2.1-T2V-14B"]["num_params"] == 14288491584
    assert rows["OmniAvatar"]["roles"] == ["dit", "lora", "audio_adapter"]


def test_inspect(tmp_path: Path) -> None:
    file = write_delta(tmp_path)
    result = omni("inspect", file)
    assert result.exit_code == 0
    for text in ("OmniAvatar", "overlay on the base", "in_dim=33", "AudioAdapter", "float32"):
        assert text in result.output
    assert "audio_proj.norm_out.bias" in omni("inspect", "--keys", file).output


def test_inspect_as_json(tmp_path: Path) -> None:
    (detection,) = json.loads(omni("inspect", "--json", "--keys", write_delta(tmp_path)).output)
    dit, lora, adapter = detection["components"]
    assert dit["keys"]["patch_embedding.weight"] == [[24, 33, 1, 2, 2], "float32"]
    assert (lora["constants"]["rank"], adapter["num_keys"]) == (4, 8)


@pytest.mark.slow
def test_inspect_unknown(tmp_path: Path) -> None:
    state = {"patch_embedding.weight": torch.zeros(3, 16, 1, 2, 2), "surprise": torch.zeros(1)}
    file = write_safetensors(tmp_path / "x.safetensors", state)
    result = omni("inspect", file)
    assert isinstance(result.exception, CheckpointError)
    assert "nearest is" in str(result.exception)


def test_verify(tmp_path: Path) -> None:
    write_delta(tmp_path / "good")
    result = omni("verify", tmp_path)
    assert result.exit_code == 0
    assert "1 known, 0 unknown, 0 damaged" in result.output
    (tmp_path / "bad.safetensors").write_bytes(b"<html>")
    result = omni("verify", "--json", tmp_path)
    assert result.exit_code == 1
    assert {Path(item["path"]).name: item["verdict"] for item in json.loads(result.output)} == {
        "bad.safetensors": "damaged",
        "pytorch_model.pt": "known",
    }


def test_verify_an_empty_folder(tmp_path: Path) -> None:
    assert isinstance(omni("verify", tmp_path).exception, CheckpointError)


@pytest.mark.parametrize(
    ("number", "text"), [(None, "-"), (999, "999"), (1418996800, "1.42 B"), (126892531, "126.89 M")]
)
def test_billions(number: int | None, text: str) -> None:
    from omniavatar.cli.models import billions

    assert billions(number) == text


def test_names_of_files_are_shown_as_they_are(tmp_path: Path) -> None:
    write_delta(tmp_path / "[draft] x[")
    (tmp_path / "[draft] x[" / "b].safetensors").write_bytes(b"<html>")
    output = omni("verify", tmp_path).output
    assert "[draft] x[/b].safetensors" in output.replace("\n", "")
    assert "1 known, 0 unknown, 1 damaged" in output
