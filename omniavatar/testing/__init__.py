"""Helpers for tests of units and plugins."""

from omniavatar.testing.fakes import FakeAudioAdapter, FakeAudioEncoder, FakeDiT, FakeVAE
from omniavatar.testing.models import GivenModels, LatentFormat

__all__ = ["FakeAudioAdapter", "FakeAudioEncoder", "FakeDiT", "FakeVAE", "GivenModels", "LatentFormat"]
