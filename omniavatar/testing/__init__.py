"""Helpers for tests of units and plugins: `check_unit`, `check_plan`, small videos, small networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from omniavatar.testing.fakes import FakeAudioAdapter, FakeAudioEncoder, FakeDiT, FakeVAE
from omniavatar.testing.models import GivenLora, GivenModels, LatentFormat

if TYPE_CHECKING:
    from omniavatar.testing.check import check_plan, check_unit
    from omniavatar.testing.videos import models_in, small_video

__all__ = [
    "FakeAudioAdapter",
    "FakeAudioEncoder",
    "FakeDiT",
    "FakeVAE",
    "GivenLora",
    "GivenModels",
    "LatentFormat",
    "check_plan",
    "check_unit",
    "models_in",
    "small_video",
]
_MODULES = {
    "check_plan": "omniavatar.testing.check",
    "check_unit": "omniavatar.testing.check",
    "models_in": "omniavatar.testing.videos",
    "small_video": "omniavatar.testing.videos",
}


def __getattr__(name: str) -> Any:
    """Those that import nearly everything, when they are asked for."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
