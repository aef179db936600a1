"""Wan 2.2 S2V for omniavatar: speech to video with a reference picture, poses and clips that continue each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

from omniavatar.sdk import hookimpl

if TYPE_CHECKING:
    from omniavatar.sdk import PipelineUnit

OMNIAVATAR_API = 1
S2V = (
    "prompt+s2v-image+s2v-audio+s2v-pose+s2v-clips+guidance+schedule+euler+s2v-transformer+lora+vae-decode+write-video"
)


@hookimpl
def omni_units() -> Sequence[type[PipelineUnit]]:
    from omniavatar_s2v.audio import S2VAudio
    from omniavatar_s2v.clips import S2VClips
    from omniavatar_s2v.image import S2VImage
    from omniavatar_s2v.pose import S2VPose
    from omniavatar_s2v.transformer import S2VTransformer

    return [S2VImage, S2VAudio, S2VPose, S2VClips, S2VTransformer]


@hookimpl
def omni_presets() -> Mapping[str, str]:
    return {"s2v": S2V}


@hookimpl
def omni_checkpoints() -> Sequence[Traversable]:
    return [files(__package__) / "s2v.toml"]
