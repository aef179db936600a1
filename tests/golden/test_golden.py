"""pytest over the golden cases of this folder: the same code as `python -m tests.golden`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.__main__ import main
from tests.golden.cases import case_files, run_file

FILES = list(case_files(Path(__file__).parent))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_case(path: Path) -> None:
    case, verdict = run_file(path)
    if verdict == "skip":
        pytest.skip(f"kind {case.kind} belongs to a plugin that is not here")
    assert verdict == "pass", "; ".join(case.failures)


def test_a_wrong_number_is_a_failure_and_an_unknown_kind_a_skip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"inputs": {"text": "a  b"}, "expected": {"text": "wrong"}, "note": ""}]
    (tmp_path / "prompt_clean.json").write_text(json.dumps(records))
    (tmp_path / "unheard_of.json").write_text("[]")
    (tmp_path / "vae-broken.safetensors").write_bytes(b"nothing")
    assert main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines[:3]] == ["fail", "skip", "fail"]
    assert lines[-1].startswith("0 passed, 2 failed, 1 skipped")
