"""The published checkpoints against our networks: names, shapes and counts must be theirs exactly."""

from __future__ import annotations

import math

import pytest

from omniavatar.checkpoints import Registry, Row, fingerprint
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.engine.plan import make_unit
from omniavatar.plugins import discover

PUBLISHED = [row for row in Registry.builtin().rows if row.hash]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
def test_the_network_of_a_row_has_the_published_hash(row: Row) -> None:
    shapes = expected_shapes(row)
    assert fingerprint(shapes) == row.hash
    assert row.num_keys in (None, len(shapes))
    assert row.num_params in (None, sum(math.prod(shape) for shape in shapes.values()))


def test_the_wan_2_1_models_of_omniavatar_are_known() -> None:
    expected = {
        ("9269f8db9040a9d860eaca435be61814", 1418996800),
        ("aafcfd9672c3a2456dc46e1cb6e52c70", 14288491584),
        ("cb104773c6c2cb6df4f9529ad5c60d0b", 14288491584),
        ("5ec04e02b42d2580483ad69f4e76346a", 14288491584),
        ("9c8818c2cbea55eca56c7b447df170da", 5680910336),
        ("ccc42284ea13e1ad04693284c7a09be6", 126892531),
    }
    assert expected <= {(row.hash, row.num_params) for row in PUBLISHED}


@pytest.mark.parametrize("row", Registry.builtin().rows, ids=lambda row: row.name)
def test_the_units_accept_what_a_row_recommends(row: Row) -> None:
    units = discover().catalog().units
    for name, settings in row.settings.items():
        unit = make_unit(units[name], settings)
        assert all(getattr(unit.settings, key) is not None for key in settings)


def test_the_teacache_polynomials_are_of_fourth_degree() -> None:
    found = {row.name: row.settings["teacache"]["coefficients"] for row in PUBLISHED if "teacache" in row.settings}
    assert {"Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B", "Wan2.1-T2V-14B-Diffusers"} <= found.keys()
    assert all(len(coefficients) == 5 for coefficients in found.values())
    assert found["Wan2.1-T2V-1.3B"][-1] == pytest.approx(-0.0499875664)
