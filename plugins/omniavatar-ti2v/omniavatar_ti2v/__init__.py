"""Wan 2.2 TI2V for omniavatar: the unit `ti2v`, the VAE with 48 channels, and a preset of both."""

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
    from omniavatar_ti2v.unit import Ti2v

    return [Ti2v]


@hookimpl
def omni_presets() -> Mapping[str, str]:
    units = "prompt+ti2v+fixed-frames+guidance+schedule+euler+transformer+lora+vae-decode+soundtrack+write-video"
    return {"wan-ti2v": units}


@hookimpl
def omni_checkpoints() -> Sequence[Traversable]:
    return [files(__package__) / "ti2v.toml"]
