"""What omniavatar itself brings, through the same door as every plugin package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.checkpoints.formats import Format
    from omniavatar.engine.unit import PipelineUnit

DEFAULT = (
    "prompt+reference-image+audio+audio-adapter+fixed-frames+guidance+schedule+euler+transformer+lora+vae-decode"
    "+write-video"
)
# The rounding and tiles of the first OmniAvatar program, for results that agree with it frame by frame.
ORIGINAL = (
    "default+reference-image(fit=original, tiled=true)+audio(frame_count=original, segment=0)"
    "+fixed-frames(full_windows=true, tiled=true)+vae-decode(tiled=true)"
)


@hookimpl
def omni_units() -> Sequence[type[PipelineUnit]]:
    from omniavatar.units import BUILTIN

    return BUILTIN


@hookimpl
def omni_presets() -> Mapping[str, str]:
    return {"default": DEFAULT, "original": ORIGINAL}


@hookimpl
def omni_checkpoints() -> Sequence[Path | Traversable]:
    from omniavatar.resources import registry_tables

    return registry_tables()


@hookimpl
def omni_formats() -> Sequence[Format]:
    from omniavatar.checkpoints.formats import BUILTIN

    return BUILTIN
