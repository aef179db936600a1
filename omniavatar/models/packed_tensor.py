"""Weights that stay in memory as they lie in their file, in 8 bits or fewer, and are made dense when they are used.

Weight formats (`omniavatar.checkpoints.formats`) make them, `packed.PackedLinear` computes with them. Importing this
does not import torch, since formats are told apart without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class PackedTensor:
    """A weight that is kept as it lies in its file.

    shape: the logical one. parts: the tensors it consists of; all arithmetic starts from these, so that they can be
    moved one by one. What else a subclass keeps are plain numbers and texts.
    is_weight_only: the input of a layer must not be rounded for the sake of a fast multiplication.
    """

    shape: tuple[int, ...]
    parts: dict[str, Tensor]
    is_weight_only: bool = False

    def __init__(self, shape: tuple[int, ...], parts: Mapping[str, Tensor]) -> None:
        self.shape = tuple(shape)
        self.parts = dict(parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    def with_parts(self, parts: Mapping[str, Tensor]) -> Self:
        """The same weight with its parts elsewhere."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, parts=dict(parts))
        return other

    def to(self, device: torch.device | str) -> Self:
        """The same weight on a device."""
        return self.with_parts({name: part.to(device) for name, part in self.parts.items()})

    def dense(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        """The numbers, of the logical shape: computed in float32 and rounded once, to `dtype`.

        dtype: default float32. device: where to compute and to leave them; default: where the parts are.
        """
        raise NotImplementedError

    def as_fp8(self) -> tuple[Tensor, Tensor | None] | None:
        """The numbers (out in) in an fp8 type and their scale, (1), (1, 1) or (out, 1), if the weight is that and no
        more; no scale: the numbers as they are.
        """
        return None

    def cut(self, shape: tuple[int, ...]) -> Self:
        """The weight of this shape that was padded to the stored one. Raises ValueError if it was not."""
        if tuple(shape) != tuple(self.shape):
            raise ValueError(f"a weight of the shape {list(self.shape)} is none of {list(shape)}")
        return self
