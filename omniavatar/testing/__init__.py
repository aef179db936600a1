"""Helpers for tests of units and plugins: `check_unit`, `check_plan`, small networks, some of which compute nothing."""

from typing import TYPE_CHECKING, Any

from omniavatar.testing.fakes import FakeAudioAdapter, FakeAudioEncoder, FakeDiT, FakeVAE
from omniavatar.testing.models import GivenLora, GivenModels, LatentFormat

if TYPE_CHECKING:
    from omniavatar.testing.check import check_plan, check_unit

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
]


def __getattr__(name: str) -> Any:
    """`check_unit` and `check_plan` when they are asked for, since they import nearly everything."""
    if name in ("check_plan", "check_unit"):
        from omniavatar.testing import check

        return getattr(check, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
