"""GGUF files for omniavatar: quantised transformers and text encoders, as ComfyUI-GGUF and llama.cpp write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omniavatar.sdk import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Format

OMNIAVATAR_API = 1


@hookimpl
def omni_formats() -> Sequence[Format]:
    from omniavatar_gguf.format import GgufFormat

    return [GgufFormat()]


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    quantisation: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a Wan transformer as GGUF; see `omniavatar_gguf.writing.write`."""
    from omniavatar_gguf import writing

    writing.write(path, tensors, quantisation, metadata)
