"""GGUF files for omniavatar: quantised transformers and text encoders, as ComfyUI-GGUF and llama.cpp write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.checkpoints.formats import Format


@hookimpl
def omni_formats() -> Sequence[Format]:
    from omniavatar_gguf.format import GgufFormat

    return [GgufFormat()]
