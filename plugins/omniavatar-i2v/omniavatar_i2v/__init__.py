"""Image to video for omniavatar: a unit, two presets, the image transformer and the CLIP image encoder."""

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
    from omniavatar_i2v.unit import ImageToVideo

    return [ImageToVideo]


@hookimpl
def omni_presets() -> Mapping[str, str]:
    return {
        "i2v": "default-reference-image-audio-audio-adapter-fixed-frames+soundtrack+image-to-video",
        "i2v-avatar": "default-reference-image+image-to-video",
    }


@hookimpl
def omni_checkpoints() -> Sequence[Traversable]:
    return [files(__package__) / "i2v.toml"]
