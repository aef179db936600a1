"""Fixtures for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
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


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C and its like work in this process, and in those that it starts, also where the tests were started without.

    As `nohup make test &` does, which ignores SIGHUP and, in a script, SIGINT.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGTERM)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _own_user_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands keep their last words elsewhere than those of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("user")))
        yield


@pytest.fixture(scope="session")
def portrait() -> Path:
    return asset("demo", "portrait.png")


@pytest.fixture(scope="session")
def speech() -> Path:
    return asset("demo", "speech.flac")
