"""Wan Fun models for omniavatar: control video, reference picture and camera, each a unit beside image-to-video."""

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
    from omniavatar_fun.camera import FunCamera
    from omniavatar_fun.control import FunControl
    from omniavatar_fun.reference import FunReference

    return [FunControl, FunReference, FunCamera]


@hookimpl
def omni_presets() -> Mapping[str, str]:
    return {
        "fun-control-video": "i2v+fun-control",
        "fun-reference-video": "i2v+fun-control+fun-reference",
        "fun-camera-video": "i2v+fun-camera",
    }


@hookimpl
def omni_checkpoints() -> Sequence[Traversable]:
    return [files(__package__) / "fun.toml"]
