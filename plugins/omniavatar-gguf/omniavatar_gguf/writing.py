"""GGUF files for ComfyUI-GGUF, WanVideoWrapper and omniavatar itself, written with the gguf package.

    write(Path("wan_Q8_0.gguf"), tensors, "Q8_0")

What is quantised follows the published files of Wan: the matrices inside the blocks are; what stands outside of them
(embeddings, projections of time, head), the 5-D patch embedding, norms, biases and modulation are not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from torch import Tensor

from omniavatar.sdk import CheckpointError, OutputError, nearest
from omniavatar_gguf.blocks import PLAIN, Type, block_size
from omniavatar_gguf.header import ALIGNMENT, ORIGINAL_SHAPE
from omniavatar_gguf.names import WAN

FILE_TYPES = {
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q5_1": LlamaFileType.MOSTLY_Q5_1,
    "Q5_0": LlamaFileType.MOSTLY_Q5_0,
    "Q4_1": LlamaFileType.MOSTLY_Q4_1,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
}
"""What the gguf package can make, by size; the numbers go to `general.file_type`."""
TYPES = {dtype: kind for kind, dtype in PLAIN.items()}
QUANTISATION_VERSION = 2
SMALL = 1024
"""Tensors of at most so many numbers stay float32."""
LONGEST_NAME = 127
"""Bytes of a name in ComfyUI-GGUF's build of ggml."""
_MATRIX = re.compile(r"(?:.*\.)?\w*blocks\.\d+\.(?!.*(?:norm|modulation)).*\.weight")
_TEXT_ENCODER = re.compile(r"(?:encoder\.block|enc\.blk)\.\d+\..*|token_embedding\.weight")


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    quantisation: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a Wan transformer or an adapter of one.

    tensors: by official names. Each is asked for twice, shape and data, so a mapping that reads from a file needs no
    memory but for one tensor. quantisation: one of `FILE_TYPES`; None keeps every number as it is. metadata: strings
    that are kept. Raises CheckpointError for what cannot be written so, OutputError if the file cannot; then there is
    none.
    """
    if quantisation is not None and quantisation not in FILE_TYPES:
        raise CheckpointError(f"GGUF files cannot be written as {quantisation!r}{nearest(quantisation, FILE_TYPES)}")
    writer = gguf.GGUFWriter(None, WAN)
    writer.add_quantization_version(QUANTISATION_VERSION)
    if quantisation is not None:
        writer.add_file_type(FILE_TYPES[quantisation])
    for key, value in (metadata or {}).items():
        if key not in (gguf.Keys.General.ARCHITECTURE, ALIGNMENT) and not key.startswith(ORIGINAL_SHAPE):
            writer.add_string(key, value)
    kinds = {name: announce(writer, name, tensor, quantisation) for name, tensor in tensors.items()}
    if not kinds:
        raise CheckpointError(f"there are no tensors to write to {path}")
    part = path.with_name(f".{path.name}.part")
    try:
        write_to(part, writer, tensors, kinds)
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        writer.close()
        part.unlink(missing_ok=True)


def write_to(
    part: Path, writer: gguf.GGUFWriter, tensors: Mapping[str, Tensor], kinds: Mapping[str, GGMLQuantizationType]
) -> None:
    """Write header and data; of the data one tensor at a time is in memory."""
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, kind in kinds.items():
        writer.write_tensor_data(stored(tensors[name], kind))
    writer.flush()


def announce(writer: gguf.GGUFWriter, name: str, tensor: Tensor, quantisation: str | None) -> GGMLQuantizationType:
    """Put a tensor's name, shape and type, which is returned, into the header."""
    kind = kind_of(name, tensor, quantisation)
    numbers, nbytes = block_size(kind)
    size = tensor.numel() // numbers * nbytes
    writer.add_tensor_info(name, tuple(tensor.shape), np.dtype(np.float32), size, raw_dtype=kind)
    return kind


def kind_of(name: str, tensor: Tensor, quantisation: str | None) -> GGMLQuantizationType:
    """The type in which a tensor is written. Raises CheckpointError for names and numbers that GGUF cannot hold."""
    if len(name.encode()) > LONGEST_NAME:
        raise CheckpointError(f"the name {name[:80]!r}... is too long for GGUF, which takes {LONGEST_NAME} bytes")
    if _TEXT_ENCODER.fullmatch(name):
        raise CheckpointError(
            f"{name!r} is of a text encoder, and only transformers are written as GGUF; give a transformer"
        )
    if tensor.dtype not in TYPES:
        raise CheckpointError(f"{name!r} is {str(tensor.dtype).removeprefix('torch.')}, which GGUF does not hold")
    own = TYPES[tensor.dtype]
    if quantisation is None:
        return own
    if tensor.dim() == 1 or tensor.numel() <= SMALL or name.endswith("modulation"):
        return Type.F32
    kind = GGMLQuantizationType[quantisation]
    fits = tensor.dim() == 2 and tensor.shape[-1] % block_size(kind)[0] == 0 and _MATRIX.fullmatch(name)
    if not fits or (kind == Type.F16 and not half_holds(tensor)):
        return own
    return kind


def half_holds(tensor: Tensor) -> bool:
    """Whether no number is too large for float16."""
    return bool(tensor.abs().max() <= torch.finfo(torch.float16).max)


def stored(tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    """A tensor as the bytes of a file."""
    tensor = tensor.detach().cpu().contiguous()
    if kind in PLAIN:
        return tensor.to(PLAIN[kind]).flatten().view(torch.uint8).numpy()
    return gguf.quants.quantize(tensor.float().numpy(), kind)
