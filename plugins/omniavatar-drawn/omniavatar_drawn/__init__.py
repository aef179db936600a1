"""The factory of the built-in avatar: draws talking faces, trains the networks around the transformer, and measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.metrics import Metric
    from omniavatar.training.data.generated import ClipGenerator


@hookimpl
def omni_metrics() -> Sequence[Metric]:
    from omniavatar_drawn.metrics import METRICS

    return METRICS


@hookimpl
def omni_clips() -> Sequence[type[ClipGenerator]]:
    from omniavatar_drawn.generator import FaceClips

    return [FaceClips]
