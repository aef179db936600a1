"""`docs/coming-from.md` names settings, units and inputs that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from omniavatar.plugins import discover

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text()
OURS = "\n".join(line.rsplit("|", 2)[1] for line in PAGE.splitlines() if line.startswith("|"))
UNITS = discover().catalog().units
SETTINGS = sorted(set(re.findall(r"`([a-z][a-z0-9-]*)\.([a-z_]+)`", OURS)) - {("chunk", "frames")})


@pytest.mark.parametrize(("unit", "setting"), SETTINGS)
def test_a_setting_is_one(unit: str, setting: str) -> None:
    assert setting in UNITS[unit].Settings.model_fields


def test_units_and_inputs_are_known() -> None:
    inputs = {name for unit in UNITS.values() for name in unit.Inputs.model_fields}
    named = re.findall(r"(units?|inputs?) ((?:`[a-z_-]+`(?:, )?)+)", OURS)
    found = {(kind.rstrip("s"), name) for kind, names in named for name in re.findall(r"`([a-z_-]+)`", names)}
    assert len(found) > 15
    assert [name for kind, name in found if name not in (UNITS if kind == "unit" else inputs)] == []
    assert len(SETTINGS) > 20
