"""The JSON is what docs/benchmarks.md says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omniavatar.bench.compare import TIMES
from omniavatar.bench.machine import machine
from omniavatar.bench.record import Machine, Record, Spread, Times, described
from omniavatar.errors import InputError
from tests.bench.test_compare import combination, record

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def test_the_page_lists_every_field_in_its_own_words() -> None:
    schema = PAGE.read_text().partition("\n## The JSON\n")[2]
    listed = [line for line in schema.splitlines() if line.startswith("- ")]
    assert listed == list(described())
    assert len(listed) > 60


def test_every_time_that_varies_is_compared() -> None:
    assert set(TIMES) == {name for name, info in Times.model_fields.items() if info.annotation is Spread}


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record(combination())
    written.write(tmp_path / "a.json")
    assert Record.read(tmp_path / "a.json") == written
    assert json.loads((tmp_path / "a.json").read_text())["version"] == 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 1}, "is no record of this omni bench: version = 1"),
        ({"surprise": 1}, "surprise = 1: extra inputs are not permitted"),
        ({"combinations": [{"name": "x"}]}, "'combinations.0.status' is required"),
    ],
)
def test_another_schema_is_refused(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**record(combination()).model_dump(mode="json"), **change}))
    with pytest.raises(InputError, match=complaint):
        Record.read(path)


def test_median_and_quartiles() -> None:
    spread = Spread.of([4.0, 1.0, 3.0, 2.0, 100.0])
    assert (spread.low, spread.median, spread.high, spread.iqr) == (2, 3, 4, 2)
    assert spread.values == (4, 1, 3, 2, 100)
    assert Spread.of([5.0]).iqr == 0


def test_the_machine_has_a_name() -> None:
    found = Machine(**machine("cpu"))
    assert found.device == found.processor != ""
    assert (found.cuda, found.device_memory_gib) == (None, None)
