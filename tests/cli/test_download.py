"""`omni models download`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints.tiny import dit_state, write_base, write_safetensors, write_table
from tests.cli.conftest import Omni
from tests.hub import FakeHub, serving

CONFIG = """
models_dir: pretrained
models:
  - {path: net/net.safetensors, repo: some/net, files: [net.safetensors], serves: {rows: [tiny]}, beside: [tok],
     quants: {fp8: [{repo: some/small, files: [net_fp8.safetensors]}]}}
  - {path: other/o.pt, repo: some/other, files: [o.pt]}
"""


@pytest.fixture
def server(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    repos = {
        "some/net": {"net.safetensors": b"n" * 5000, "tok/x.json": b"{}"},
        "some/small": {"net_fp8.safetensors": b"s" * 2000},
        "some/other": {"o.pt": b"o" * 100, "not this": b"x"},
    }
    (folder / "my.yaml").write_text(CONFIG)
    with serving(repos) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.delenv("OMNI_MODELS", raising=False)
        yield hub


def test_download_and_again(omni: Omni, server: FakeHub, tmp_path: Path) -> None:
    outcome = omni("models", "download", "my.yaml")
    assert outcome.code == 0, outcome
    assert outcome.out.splitlines() == [
        "to come: some/net: net.safetensors (5 kB)",
        "to come: some/other: o.pt (100 B)",
        f"2 files are in {tmp_path / 'hub'}; omni run --config my.yaml finds them there",
    ]
    assert "net.safetensors (1 of 2)" in outcome.err
    assert server.gets("not this") == []
    again = omni("models", "download", "my.yaml")
    assert again.out.splitlines()[-1] == "everything is there"


def test_a_precision_and_what_has_none(omni: Omni, server: FakeHub) -> None:
    lines = omni("models", "download", "my.yaml", "--quant", "fp8", "--dry-run").out.splitlines()
    assert lines == [
        "to come: some/small: net_fp8.safetensors (2 kB)",
        "to come: some/other: o.pt (100 B; as published, no fp8 is known for it)",
    ]
    assert server.gets("o.pt") == []
    assert "choices: fp8" in omni("models", "download", "my.yaml", "--quant", "gguf-q8").error


def test_what_lies_elsewhere_is_not_downloaded(omni: Omni, server: FakeHub, folder: Path) -> None:
    (folder / "pretrained" / "net" / "tok").mkdir(parents=True)
    file = write_base(folder / "pretrained" / "net").rename(folder / "pretrained" / "net" / "net.safetensors")
    outcome = omni("models", "download", "my.yaml")
    assert outcome.out.splitlines()[0] == f"there: {file.relative_to(folder / 'pretrained')}"
    assert server.gets("net.safetensors") == []


def test_a_precision_that_lies_in_another_folder(omni: Omni, server: FakeHub, folder: Path) -> None:
    state = dit_state()
    write_safetensors(folder / "comfy" / "net_fp8.safetensors", state)
    (folder / "comfy" / "tok").mkdir()
    write_table(folder / "t.toml", state)
    (folder / "my.yaml").write_text(f"tables: [{folder / 't.toml'}]\n{CONFIG}")
    lines = omni("models", "download", "my.yaml", "--quant", "fp8", "--models", "comfy", "--dry-run").out.splitlines()
    assert lines[0] == f"there: {folder / 'comfy' / 'net_fp8.safetensors'}"
    assert "some/small" not in str(lines)


def test_more_than_20_gb_are_asked_for(omni: Omni, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniavatar.cli.download.LARGE", 1000)
    outcome = omni("models", "download", "my.yaml")
    assert outcome.code == 2
    assert outcome.err == "omni: 5 kB are to come; agree with --yes, or take less with --quant\n"
    assert omni("models", "download", "my.yaml", "--yes", "--quiet").err == ""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    server.repos["some/net"]["net.safetensors"] = b"m" * 5001
    answers: list[str] = []
    monkeypatch.setattr("click.confirm", lambda text, **_: answers.append(text))
    assert omni("models", "download", "my.yaml", "--quant", "fp8").code == 0
    assert answers == ["download 2 kB?"]


def test_failures_are_one_line_and_keep_what_is_complete(omni: Omni, server: FakeHub) -> None:
    server.damaged.add("o.pt")
    outcome = omni("models", "download", "my.yaml", "--quiet")
    assert outcome.code == 2
    assert outcome.error.endswith("give the command again; 1 of 2 files are complete")
    server.damaged.clear()
    assert "to come: some/other" in omni("models", "download", "my.yaml").out


def test_names_of_configurations(omni: Omni, server: FakeHub) -> None:
    assert omni("models", "download", "tiny").error == "tiny comes with this package; there is nothing to download"
    assert "did you mean 'omniavatar-14b'?" in omni("models", "download", "omniavatar-14").error
    outcome = omni("models", "download", "omniavatar-14b-lora", "--dry-run")  # of training; this hub has none of it
    assert "Wan-AI/Wan2.1-T2V-14B is not there, or not for you (401)" in outcome.error


@pytest.mark.slow
def test_the_variables_of_hugging_face_are_heeded(server: FakeHub, folder: Path, tmp_path: Path) -> None:
    variables = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "omniavatar", "models", "download", "my.yaml"]
    for extra, code in (({"HF_HUB_OFFLINE": "1"}, 2), ({}, 0), ({"HF_HUB_OFFLINE": "1"}, 2)):
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env={**os.environ, **variables, **extra}, check=False
        )
        assert done.returncode == code, done
        if code:
            assert "HF_HUB_OFFLINE is set" in done.stderr
            assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "home" / "hub" / "models--some--net").is_dir()
