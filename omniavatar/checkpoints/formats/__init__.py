"""Weight formats: what a model file is, read through one door.

    formats = Formats([*BUILTIN, *those_of_plugins])
    header = formats.of(file).read_header(file)          # names, logical shapes, no data
    for name, weight in formats.of(file).read(file, header.tensors, "cpu"):
        ...                                              # a Tensor, or a PackedTensor that stays as small as it lies

A plugin brings a format by the hook `omni_formats`. Importing this package does not import torch.
"""

from omniavatar.checkpoints.formats.base import (
    BITS,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    FileHeader,
    Format,
    PackedTensor,
    TensorInfo,
)
from omniavatar.checkpoints.formats.known import BUILTIN, Formats, check_readable, format_fault
from omniavatar.checkpoints.formats.pickled import Pickled
from omniavatar.checkpoints.formats.safetensors import Safetensors

__all__ = [
    "BITS",
    "BUILTIN",
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "FileHeader",
    "Format",
    "Formats",
    "PackedTensor",
    "Pickled",
    "Safetensors",
    "TensorInfo",
    "check_readable",
    "format_fault",
]
