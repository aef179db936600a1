"""pytest over the golden cases of this folder: the same code as `python -m tests.golden`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.cases import case_files, read_case, run_case

FILES = list(case_files(Path(__file__).parent))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_case(path: Path) -> None:
    case = read_case(path)
    verdict = run_case(case)
    if verdict == "skip":
        pytest.skip(f"kind {case.kind} belongs to a plugin that is not here")
    assert not case.failures, "; ".join(case.failures)
    assert case.errors or case.records, "the runner compared nothing"
