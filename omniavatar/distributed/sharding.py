"""How the tokens of one transformer call are spread over ranks: equal shards in order, padded at the end.

The padding exists so that collectives see equal shapes. It never enters attention and is cut off when shards are
gathered, so the result does not depend on the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from omniavatar.distributed.groups import Group


@dataclass(frozen=True)
class Sharding:
    """`length` tokens over the ranks of `group`."""

    group: Group
    length: int

    @property
    def shard_length(self) -> int:
        """Tokens of every rank, padding included."""
        return -(-self.length // self.group.size)

    def shard(self, tokens: Tensor, dim: int = 1, fill: float = 0) -> Tensor:
        """This rank's part of a tensor that has `length` tokens along `dim`."""
        size = self.shard_length
        start = min(self.group.rank * size, self.length)
        part = tokens.narrow(dim, start, min(size, self.length - start))
        missing = size - part.shape[dim]
        if missing:
            padding = [0, 0] * (tokens.ndim - dim - 1) + [0, missing]
            part = functional.pad(part, padding, value=fill)
        return part.contiguous()

    def gather(self, tokens: Tensor, dim: int = 1) -> Tensor:
        """All `length` tokens, on every rank, from every rank's part."""
        return torch.cat(self.group.gather(tokens), dim=dim).narrow(dim, 0, self.length)
