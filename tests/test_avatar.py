"""The packaged avatar."""

from __future__ import annotations

from pathlib import Path

from omniavatar.resources import asset

MOST_BYTES = 24 * 2**20


def test_it_is_small_enough_to_ship() -> None:
    weights = [path.stat().st_size for path in Path(asset("tiny")).rglob("*.safetensors")]
    assert len(weights) == 4
    assert sum(weights) <= MOST_BYTES
