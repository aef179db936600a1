"""Helpers for tests of units and plugins."""

from omniavatar.testing.models import GivenModels

__all__ = ["GivenModels"]
