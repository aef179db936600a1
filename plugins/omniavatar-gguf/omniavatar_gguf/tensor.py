"""A weight that stays in memory as the blocks of its GGUF file."""

from __future__ import annotations

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from omniavatar.sdk import PackedTensor
from omniavatar_gguf.blocks import dequantise


class GgufTensor(PackedTensor):
    """Blocks (n bytes) uint8 of one type, which together hold the numbers of a tensor in row-major order."""

    def __init__(self, blocks: Tensor, kind: GGMLQuantizationType, shape: tuple[int, ...]) -> None:
        super().__init__(shape, {"blocks": blocks})
        self.kind = kind

    def dense(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        """The numbers, computed in float32 where the blocks lie, or on `device`, and rounded once to `dtype`."""
        return dequantise(self.parts["blocks"].to(device), self.kind, dtype or torch.float32).reshape(self.shape)
