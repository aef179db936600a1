"""The public set of weight files, one test a case; and that the runner finds what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.formats.__main__ import why_not
from tests.formats.cases import read_cases
from tests.formats.runner import registry

PUBLIC = Path(__file__).parent / "public"


def reads_gguf() -> bool:
    return ".gguf" in registry().formats.suffixes


def cases() -> list[Any]:
    marked = []
    for raw in read_cases(PUBLIC):
        marks = []
        if any(file.endswith(".gguf") for file in (*raw["files"], raw.get("base", ""))):
            marks.append(pytest.mark.skipif(not reads_gguf(), reason="the package omniavatar-gguf is not installed"))
        marked.append(pytest.param(raw, id=raw["name"], marks=marks))
    return marked


@pytest.mark.parametrize("raw", cases())
def test_public_case(raw: dict[str, Any]) -> None:
    assert why_not(raw, PUBLIC) is None


def case(name: str, **changes: Any) -> dict[str, Any]:
    return {**next(raw for raw in read_cases(PUBLIC) if raw["name"] == name), **changes}


def test_an_unknown_field_fails() -> None:
    assert "surprise" in str(why_not(case("wrapped_pth", surprise=1), PUBLIC))
    assert "surprise" in str(why_not(case("wrapped_pth", args={"role": "dit", "surprise": 1}), PUBLIC))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expected": "base/t2v/diffusion_pytorch_model.safetensors"}, "has the shape"),
        ({"expected": "names/wan_2.1_vae.safetensors"}, "lacks"),
        ({"args": {"role": "vae"}}, "provides dit instead of vae"),
        ({"tolerance": {"compare": "roughly"}}, "no such comparison"),
        ({"files": ["names/absent.pth"]}, "is not there"),
    ],
)
def test_what_is_wrong_fails(changes: dict[str, Any], reason: str) -> None:
    assert reason in str(why_not(case("wrapped_pth", **changes), PUBLIC))


def test_a_broken_case_that_works_fails() -> None:
    assert "no error" in str(why_not(case("index_outside", files=["names/wrapped.pth"]), PUBLIC))
    assert "it should work" in str(why_not(case("index_outside", error=None), PUBLIC))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.formats.__main__ import main

    (tmp_path / "cases.json").write_text(json.dumps({"format": 1, "set": "own", "cases": [case("index_not_json")]}))
    monkeypatch.setattr("sys.argv", ["formats", str(tmp_path)])
    assert main() == 1
    assert "FAILED: the case names broken/index_not_json, which is not there" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["formats", str(PUBLIC), "--case", "index_not_json"])
    assert main() == 0
    assert "broken: 1 of 1 ok" in capsys.readouterr().out
