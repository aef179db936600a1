from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from omniavatar.checkpoints.formats import safetensors
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


def test_what_is_bad_does_not_end_it_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write_delta(tmp_path / "good")
    circle: dict[str, Any] = {}
    circle["self"] = circle
    torch.save(circle, tmp_path / "circle.pt")
    (tmp_path / "deep.safetensors").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    (tmp_path / "deep.safetensors.index.json").write_bytes(b"[" * 100_000)
    found = json.loads(omni("verify", "--json", tmp_path).output)
    assert [one["verdict"] for one in found] == ["damaged", "damaged", "damaged", "known"]
    (tmp_path / "deep.safetensors.index.json").unlink()
    (tmp_path / "panic.safetensors").write_bytes(b"?")
    contents = safetensors.read_contents

    def read(file: Path) -> Any:
        if file.stem == "panic":
            raise type("PanicException", (BaseException,), {})("index out of bounds")
        return contents(file)

    monkeypatch.setattr(safetensors, "read_contents", read)
    found = json.loads(omni("verify", "--json", tmp_path).output)
    verdicts = {Path(one["path"]).name: one["verdict"] for one in found}
    bad = dict.fromkeys(("circle.pt", "deep.safetensors", "panic.safetensors"), "damaged")
    assert verdicts == {**bad, good.name: "known"}
    result = omni("inspect", tmp_path / "circle.pt", good, tmp_path / "panic.safetensors")
    assert "OmniAvatar" in result.output
    assert f"omni: {tmp_path / 'circle.pt'} holds dictionaries" in result.output
    assert "panic.safetensors cannot be examined (PanicException: index out of bounds)" in str(result.exception)


def test_folders_that_are_linked_are_looked_into_once(tmp_path: Path) -> None:
    write_delta(tmp_path / "store" / "good")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(tmp_path / "models")
    (found,) = json.loads(omni("verify", "--json", tmp_path / "models").output)
    assert found["verdict"] == "known"


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


LORAS = Path(__file__).parents[1] / "formats" / "public" / "lora"


def test_inspect_says_how_a_lora_fits_a_model() -> None:
    base = LORAS.parent / "base" / "t2v"
    shown = omni("inspect", LORAS / "i2v_on_t2v.safetensors", "--on", base).output
    assert "LoRA of 15 layers: 12 LoRA, 3 delta; ranks 6; alpha / rank 1" in shown
    assert "21 of 42 tensors used; 21 left out: 20 x image branch: this network has no layer of this name; 1 x" in shown
    (facts,) = json.loads(omni("inspect", LORAS / "peft_dora", "--on", base, "--json").output)
    assert facts["lora"]["kinds"] == {"DoRA (LoRA)": 11}
    assert (facts["lora"]["used"], facts["lora"]["tensors"], facts["lora"]["left_out"]) == (33, 33, {})


def test_a_lora_for_another_model_is_refused_with_the_reason() -> None:
    file = LORAS.parent / "broken" / "lora_for_flux.safetensors"
    assert omni("inspect", file).exit_code == 0
    refused = omni("inspect", file, "--on", LORAS.parent / "base" / "t2v")
    assert isinstance(refused.exception, CheckpointError)
    assert "none of its 6 keys names a layer of this network" in str(refused.exception)
