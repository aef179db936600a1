"""`omni docs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Omni

DOCS = Path(__file__).parents[2] / "docs"


def test_every_page_is_listed_with_its_title(omni: Omni) -> None:
    lines = omni("docs").out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in DOCS.glob("*.md"))
    (python,) = [line for line in lines if line.startswith("python ")]
    assert "From Python" in python
    assert python.endswith(str(DOCS / "python.md"))


@pytest.mark.parametrize("name", ["python", "python.md", "docs/python.md"])
def test_a_page_is_printed_as_it_is(omni: Omni, name: str) -> None:
    assert omni("docs", name).out == (DOCS / "python.md").read_text(encoding="utf-8")


def test_a_misspelt_page_gets_the_nearest(omni: Omni) -> None:
    outcome = omni("docs", "pyton")
    assert outcome.code == 2
    assert outcome.error == "no page 'pyton' in the documentation; did you mean 'python'?"
