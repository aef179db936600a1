"""Helpers for tests of units and plugins: `check_unit`, small networks, some of which compute nothing."""

from typing import TYPE_CHECKING, Any

from omniavatar.testing.fakes import FakeAudioAdapter, FakeAudioEncoder, FakeDiT, FakeVAE
from omniavatar.testing.models import GivenLora, GivenModels, LatentFormat

if TYPE_CHECKING:
    from omniavatar.testing.check import check_unit

__all__ = [
    "FakeAudioAdapter",
    "FakeAudioEncoder",
    "FakeDiT",
    "FakeVAE",
    "GivenLora",
    "GivenModels",
    "LatentFormat",
    "check_unit",
]


def __getattr__(name: str) -> Any:
    """`check_unit` when it is asked for, since it imports nearly everything."""
    if name == "check_unit":
        from omniavatar.testing.check import check_unit

        return check_unit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
