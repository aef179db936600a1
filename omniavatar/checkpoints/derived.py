"""Weights that lie in a file otherwise than a network has them: q, k and v apart or in one matrix, turned, or flat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from omniavatar.checkpoints.headers import TensorInfo
from omniavatar.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Derived(TensorInfo):
    """A weight made of tensors of files.

    parts: what it is made of, joined along `dim`; or one tensor, of which this is piece `index` of `pieces` along
    `dim`. turned: a matrix whose sides are exchanged. leading: sides of 1 in front that the file leaves out.
    `shape` is that of the result, `name` and `file` those of the first part.
    """

    parts: tuple[TensorInfo, ...] = ()
    dim: int = 0
    pieces: int = 1
    index: int = 0
    turned: bool = False
    leading: int = 0

    def make(self, parts: Sequence[Tensor]) -> Tensor:
        """The weight, from its parts."""
        import torch

        if len(parts) > 1:
            tensor = torch.cat(list(parts), dim=self.dim)
        elif self.pieces > 1:
            # A copy of its own: otherwise each piece would keep the whole matrix in memory.
            tensor = parts[0].chunk(self.pieces, dim=self.dim)[self.index].clone()
        else:
            tensor = parts[0]
        return (tensor.T.contiguous() if self.turned else tensor).reshape(self.shape)


def joined(parts: Sequence[TensorInfo], dim: int) -> TensorInfo:
    """Tensors side by side along a dimension. Raises CheckpointError if they do not fit together."""
    first = parts[0]
    rests = {(*part.shape[:dim], *part.shape[dim + 1 :]) for part in parts}
    if len(rests) > 1 or dim >= len(first.shape):
        shapes = ", ".join(f"'{part.name}' {list(part.shape)}" for part in parts)
        raise CheckpointError(f"{first.file}: {shapes} cannot be joined into one weight")
    shape = (*first.shape[:dim], sum(part.shape[dim] for part in parts), *first.shape[dim + 1 :])
    return Derived(first.name, shape, first.dtype, first.file, parts=tuple(parts), dim=dim)


def split(whole: TensorInfo, dim: int, pieces: int) -> list[TensorInfo]:
    """The equal pieces of a tensor along a dimension. Raises CheckpointError if it has none."""
    if dim >= len(whole.shape) or whole.shape[dim] % pieces:
        raise CheckpointError(
            f"{whole.file}: '{whole.name}' has the shape {list(whole.shape)}, which does not divide into {pieces}"
        )
    shape = (*whole.shape[:dim], whole.shape[dim] // pieces, *whole.shape[dim + 1 :])
    piece = Derived(whole.name, shape, whole.dtype, whole.file, parts=(whole,), dim=dim, pieces=pieces)
    return [replace(piece, index=index) for index in range(pieces)]


def reshaped(info: TensorInfo, *, turned: bool = False, leading: int = 0) -> TensorInfo:
    """A tensor with its two sides exchanged, or with sides of 1 in front. Raises CheckpointError for no matrix."""
    if turned and len(info.shape) != 2:
        raise CheckpointError(f"{info.file}: '{info.name}' has the shape {list(info.shape)}, expected is a matrix")
    shape = (1,) * leading + (info.shape[::-1] if turned else info.shape)
    return Derived(info.name, shape, info.dtype, info.file, parts=(info,), turned=turned, leading=leading)


def cut_again(whole: TensorInfo, dim: int, pieces: int) -> list[TensorInfo]:
    """The equal pieces of a tensor, as they lie in the files if it was joined of them."""
    if isinstance(whole, Derived) and len(whole.parts) == pieces and whole.dim == dim:
        return list(whole.parts)
    return split(plain(whole), dim, pieces)


def shaped_back(info: TensorInfo, *, turned: bool = False, leading: int = 0) -> TensorInfo:
    """What `reshaped` makes this of: the tensor of the file itself if it did."""
    if isinstance(info, Derived) and (info.turned, info.leading, len(info.parts)) == (turned, leading, 1):
        return info.parts[0]
    info = plain(info)
    if len(info.shape) < leading or math.prod(info.shape[:leading]) != 1 or (turned and len(info.shape) != 2):
        raise CheckpointError(f"{info.file}: '{info.name}' has the shape {list(info.shape)}, which no such weight has")
    shape = info.shape[::-1] if turned else info.shape[leading:]
    return Derived(info.name, shape, info.dtype, info.file, parts=(info,), turned=turned)


def plain(info: TensorInfo) -> TensorInfo:
    """A tensor of a file. Raises CheckpointError for what is made of such, of which nothing more is made."""
    if isinstance(info, Derived):
        raise CheckpointError(
            f"{info.file}: '{info.name}' would have to be changed twice; write the form 'omniavatar' first"
        )
    return info


def parts_of(info: TensorInfo) -> tuple[TensorInfo, ...]:
    """The tensors of files that a weight is read from."""
    return info.parts if isinstance(info, Derived) else (info,)
