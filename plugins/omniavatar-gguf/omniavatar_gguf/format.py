"""GGUF as a weight format: headers, tensors that are mapped from the file, and files written for other programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omniavatar.sdk import CheckpointError, FileHeader, Format, TensorInfo, shown, torch
from omniavatar_gguf.header import MAGIC, MAX_DIMENSIONS, ORIGINAL_SHAPE, Contents, Record, quoted, read_contents
from omniavatar_gguf.names import TEXT_ENCODERS, architecture, full_shape, hugging_face_name
from omniavatar_gguf.tokenizer import TOKENS, GgufTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar_gguf.tensor import GgufTensor

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""Types that torch has itself, by torch's names."""
PACKED = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0"),
    *(
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_XS",
        "IQ3_S",
        "IQ3_XXS",
        "IQ2_S",
        "IQ2_XS",
        "IQ2_XXS",
        "IQ1_S",
        "IQ1_M",
    ),
)
"""Types whose blocks `blocks.UNPACK` knows; named here, so that headers are read without torch."""


class GgufFormat(Format):
    """Files of llama.cpp, ComfyUI-GGUF and others. Blocks stay packed; F16, BF16, F32 and F64 are plain tensors."""

    name = "GGUF"
    suffixes = (".gguf",)
    magic = MAGIC

    def read_header(self, file: Path) -> FileHeader:
        """Names, shapes and types. Raises CheckpointError for what is damaged, or no Wan transformer and no T5."""
        contents, tensors = open_file(file)
        entries = {name: info.shape for name, (info, _) in tensors.items()}
        infos = {name: info for name, (info, _) in tensors.items()}
        return FileHeader(infos, entries, metadata_of(file, contents))

    def read(
        self, file: Path, names: Iterable[str], device: torch.device | str
    ) -> Iterator[tuple[str, Tensor | GgufTensor]]:
        """The tensors of these names. On the CPU they are the mapped file itself, read when they are used."""
        _, tensors = open_file(file)
        mapped = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
        for name in names:
            if name not in tensors:
                raise CheckpointError(f"{file} has no tensor {quoted(name)}")
            info, record = tensors[name]
            yield name, tensor_of(mapped, info, record).to(device)

    def write(
        self,
        file: Path,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
        quantisation: str | None = None,
    ) -> None:
        """Write a Wan transformer; see `omniavatar_gguf.writing.write`."""
        from omniavatar_gguf.writing import write

        write(file, tensors, quantisation, metadata)


def open_file(file: Path) -> tuple[Contents, dict[str, tuple[TensorInfo, Record]]]:
    """The header of a file and, by their names outside of GGUF, its tensors and where they lie."""
    contents = read_contents(file)
    parts = contents.values.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise CheckpointError(f"{file} is one of {parts} parts; join them with 'llama-gguf-split --merge'")
    is_text = architecture(file, contents.values.get("general.architecture"), contents.tensors) in TEXT_ENCODERS
    tensors: dict[str, tuple[TensorInfo, Record]] = {}
    for record in contents.tensors.values():
        name = hugging_face_name(record.name) if is_text else record.name
        if name in tensors:
            other = tensors[name][1].name
            raise CheckpointError(f"{file}: {quoted(other)} and {quoted(record.name)} both mean {quoted(name)}")
        tensors[name] = info_of(file, name, record, logical_shape(file, record, contents)), record
    return contents, tensors


def info_of(file: Path, name: str, record: Record, shape: tuple[int, ...]) -> TensorInfo:
    kind = record.kind.name
    if kind in PLAIN:
        return TensorInfo(name, shape, PLAIN[kind], file)
    if kind not in PACKED:
        raise CheckpointError(
            f"{file}: tensor {quoted(record.name)} is of the type {kind}, which cannot be read; "
            "use a file of another quantisation"
        )
    return TensorInfo(name, shape, kind.lower(), file, packing="gguf", stored_bytes=record.nbytes)


def logical_shape(file: Path, record: Record, contents: Contents) -> tuple[int, ...]:
    """The shape in torch: the one that the file states apart, where rows were cut to the size of blocks."""
    stated = contents.values.get(f"{ORIGINAL_SHAPE}{record.name}")
    if stated is None:
        return full_shape(record.name, record.rows)
    is_shape = isinstance(stated, np.ndarray) and stated.dtype.kind in "iu" and 0 < len(stated) <= MAX_DIMENSIONS
    sizes = stated.tolist() if is_shape else []
    if not is_shape or min(sizes) < 1 or math.prod(sizes) != record.numel:
        raise CheckpointError(
            f"{file} is damaged: the orig_shape of {quoted(record.name)} is {shown(sizes or stated)}, "
            f"which has not its {record.numel} elements; download it again"
        )
    return tuple(sizes)


def tensor_of(mapped: Tensor, info: TensorInfo, record: Record) -> Tensor | GgufTensor:
    """One tensor of a file that is mapped (bytes) uint8."""
    content = mapped[record.start : record.start + record.nbytes]
    if info.packing is not None:
        from omniavatar_gguf.blocks import block_size
        from omniavatar_gguf.tensor import GgufTensor

        return GgufTensor(content.view(-1, block_size(record.kind)[1]), record.kind, info.shape)
    dtype: torch.dtype = getattr(torch, info.dtype)
    if record.start % dtype.itemsize:
        content = content.clone()
    return content.view(dtype).view(info.shape)


def metadata_of(file: Path, contents: Contents) -> dict[str, Any]:
    """The numbers and strings among the values of a file; `tokenizer` is the text encoder's, if it is there."""
    values: dict[str, Any] = {
        key: value for key, value in contents.values.items() if isinstance(value, str | int | float)
    }
    if TOKENS in contents.values:
        values["tokenizer"] = GgufTokenizer(file)
    return values
