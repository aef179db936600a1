"""Speed control for omniavatar: a motion bucket that changes how fast everything in the video moves."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

from omniavatar.sdk import hookimpl

if TYPE_CHECKING:
    from omniavatar.sdk import PipelineUnit

OMNIAVATAR_API = 1


@hookimpl
def omni_units() -> Sequence[type[PipelineUnit]]:
    from omniavatar_motion.unit import Motion

    return [Motion]


@hookimpl
def omni_checkpoints() -> Sequence[Traversable]:
    return [files(__package__) / "motion.toml"]
