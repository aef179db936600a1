"""VACE for omniavatar: a branch beside the transformer that follows a control video, a mask and reference pictures."""

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
    from omniavatar_vace.unit import VaceUnit

    return [VaceUnit]


@hookimpl
def omni_presets() -> Mapping[str, str]:
    return {"vace-video": "default-reference-image-audio-audio-adapter+soundtrack+vace"}


@hookimpl
def omni_checkpoints() -> Sequence[Traversable]:
    return [files(__package__) / "vace.toml"]
