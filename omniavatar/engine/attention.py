"""The attention of an engine: the slot that all its networks hold and that units may wrap; see `models.attention`."""

from omniavatar.models.attention import AttentionSlot

__all__ = ["AttentionSlot"]
