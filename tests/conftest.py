"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from omniavatar import builtin
from omniavatar.checkpoints import Bundle, Registry
from omniavatar.engine.plan import Catalog
from omniavatar.resources import asset
from omniavatar.testing.tiny import FILES, tiny_file


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """The built-in units and presets, whatever else is installed."""
    return Catalog({unit.name: unit for unit in builtin.omni_units()}, builtin.omni_presets())


@pytest.fixture(scope="session")
def tiny_models() -> Bundle:
    """The small networks with random weights."""
    return Bundle.open([str(tiny_file(name)) for name in FILES], Registry.builtin())


@pytest.fixture(scope="session")
def portrait() -> Path:
    return asset("demo", "portrait.png")


@pytest.fixture(scope="session")
def speech() -> Path:
    return asset("demo", "speech.flac")
