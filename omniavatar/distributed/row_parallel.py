"""A VAE's encoder or decoder over ranks by rows: every convolution gets the rows it needs from its neighbours.

The result is that of one rank, tiles included. The layers are not changed: for the time of a call, hooks add the
neighbours' rows in front of every spatial convolution and cut off the rows that are then too many.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from omniavatar.distributed.groups import Group

Inputs = tuple[Any, ...]


class RowParallel(nn.Module):
    """An encoder or decoder of videos whose rows are shared among the ranks of a group. All ranks call it together.

    network: takes and gives (b c t h w); `in_scale` rows of its input and `out_scale` of its output belong to a row of
    the latents. attention: the kind of layer that needs all rows at once; every rank computes these, the convolutions
    are shared.
    """

    def __init__(
        self, network: nn.Module, group: Group, attention: type[nn.Module], *, in_scale: int = 1, out_scale: int = 1
    ) -> None:
        super().__init__()
        self.network = network
        self.group = group
        self.attention = attention
        self.in_scale = in_scale
        self.out_scale = out_scale

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """This rank's rows through the network, joined with those of the others; all rows where there are too few."""
        latent_rows = x.shape[-2] // self.in_scale
        if latent_rows < self.group.size:
            whole: Tensor = self.network(x, *others)
            return whole
        rows = Rows.share(latent_rows, self.group)
        with rows.exchanged_in(self.network, self.attention):
            part = self.network(rows.own(x, self.in_scale), *others)
        return rows.join(part, self.out_scale)


@dataclass(frozen=True)
class Rows:
    """Which latent rows every rank of a group has, and the hooks that exchange rows between neighbours."""

    group: Group
    heights: tuple[int, ...]

    @classmethod
    def share(cls, rows: int, group: Group) -> Rows:
        """As equal as possible."""
        return cls(group, tuple((rows + group.size - 1 - rank) // group.size for rank in range(group.size)))

    def own(self, x: Tensor, scale: int = 1) -> Tensor:
        """This rank's rows (... h*scale w) of x (... H*scale w)."""
        start = sum(self.heights[: self.group.rank])
        return x.narrow(-2, start * scale, self.heights[self.group.rank] * scale)

    def join(self, part: Tensor, scale: int = 1) -> Tensor:
        """All rows, on every rank, from every rank's part."""
        missing = max(self.heights) * scale - part.shape[-2]
        parts = self.group.gather(functional.pad(part, (0, 0, 0, missing)))
        cut = [gathered[..., : height * scale, :] for gathered, height in zip(parts, self.heights, strict=True)]
        return torch.cat(cut, dim=-2)

    @contextmanager
    def exchanged_in(self, network: nn.Module, attention: type[nn.Module]) -> Iterator[None]:
        """Put hooks on all layers of the network that look beyond their own row."""
        handles = []
        for layer in network.modules():
            if isinstance(layer, attention):
                handles.append(layer.register_forward_pre_hook(self._join_before))
                handles.append(layer.register_forward_hook(self._own_after))
            elif isinstance(layer, nn.ZeroPad2d):  # before a stride of 2, which looks one row down
                handles.append(layer.register_forward_pre_hook(self._row_below_before))
            elif isinstance(layer, nn.Conv2d | nn.Conv3d) and layer.padding[-2] == 1:  # looks one row up and down
                handles.append(layer.register_forward_pre_hook(self._rows_around_before))
                handles.append(layer.register_forward_hook(self._cut_after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _join_before(self, layer: nn.Module, inputs: Inputs) -> Inputs:
        return (self.join(inputs[0]), *inputs[1:])

    def _own_after(self, layer: nn.Module, inputs: Inputs, output: Tensor) -> Tensor:
        return self.own(output)

    def _row_below_before(self, layer: nn.Module, inputs: Inputs) -> Inputs:
        _, below = self._exchange(inputs[0])
        return (torch.cat([inputs[0], below], dim=-2), *inputs[1:])

    def _rows_around_before(self, layer: nn.Module, inputs: Inputs) -> Inputs:
        above, below = self._exchange(inputs[0])
        return (torch.cat([above, inputs[0], below], dim=-2), *inputs[1:])

    @staticmethod
    def _cut_after(layer: nn.Module, inputs: Inputs, output: Tensor) -> Tensor:
        scale = output.shape[-2] // inputs[0].shape[-2]
        return output[..., scale:-scale, :]

    def _exchange(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last row of the rank above and the first of the rank below (... 1 w), zeros beyond the picture."""
        group = self.group
        first, last = x[..., :1, :].contiguous(), x[..., -1:, :].contiguous()
        above, below = torch.zeros_like(first), torch.zeros_like(last)
        operations = []
        for neighbour, sent, received in ((group.rank - 1, first, above), (group.rank + 1, last, below)):
            if 0 <= neighbour < group.size:
                peer = group.global_rank(neighbour)
                operations.append(distributed.P2POp(distributed.isend, sent, peer, group.handle))
                operations.append(distributed.P2POp(distributed.irecv, received, peer, group.handle))
        for request in distributed.batch_isend_irecv(operations):
            request.wait()
        return above, below
