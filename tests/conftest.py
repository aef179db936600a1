"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from omniavatar import builtin
from omniavatar.checkpoints import Bundle, Registry
from omniavatar.engine.plan import Catalog
from omniavatar.resources import asset

TINY_FILES = ("transformer.safetensors", "vae.safetensors", "text_encoder.safetensors", "wav2vec2")


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """The built-in units and presets, whatever else is installed."""
    return Catalog({unit.name: unit for unit in builtin.omni_units()}, builtin.omni_presets())


@pytest.fixture(scope="session")
def tiny_models() -> Bundle:
    """The packaged tiny model."""
    return Bundle.open([str(asset("tiny", name)) for name in TINY_FILES], Registry.builtin())


@pytest.fixture(scope="session")
def portrait() -> Path:
    return asset("demo", "portrait.png")


@pytest.fixture(scope="session")
def speech() -> Path:
    return asset("demo", "speech.flac")
