"""Wan 2.2 Animate for omniavatar: a person from a picture who moves and looks as somebody in a video does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

from omniavatar.sdk import hookimpl

if TYPE_CHECKING:
    from omniavatar.sdk import PipelineUnit

OMNIAVATAR_API = 1


@hookimpl
def omni_units() -> Sequence[type[PipelineUnit]]:
    from omniavatar_animate.image import AnimateImage
    from omniavatar_animate.motion import AnimateMotion

    return [AnimateImage, AnimateMotion]


@hookimpl
def omni_presets() -> Mapping[str, str]:
    return {
        "animate": "default-reference-image-audio-audio-adapter+soundtrack+animate-image+animate-motion",
        "animate-avatar": "default-reference-image+animate-image+animate-motion",
    }


@hookimpl
def omni_checkpoints() -> Sequence[Traversable]:
    return [files(__package__) / "animate.toml"]
