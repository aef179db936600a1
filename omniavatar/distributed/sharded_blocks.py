"""The blocks of a network sharded over ranks by torch's FSDP2, each gathered while the one before it computes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from omniavatar.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.distributed.groups import Group


def bring_rest(network: nn.Module, sharded: nn.ModuleList | None, device: torch.device) -> None:
    """Move what is not sharded to the device."""
    for part in network.children():
        if part is not sharded:
            part.to(device)
    for weight in network.parameters(recurse=False):
        weight.data = weight.data.to(device)


class Together(nn.Module):
    """Blocks as torch's FSDP wants them: below one root, whose streams they share, which must have run before them."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, nothing: Tensor) -> None:
        """Nothing: the blocks are called one by one by the engine. (On CUDA, FSDP expects an argument.)"""


def shard_blocks(blocks: nn.ModuleList, device_type: str, group: Group) -> None:
    """Shard each block over all ranks, and let each gather its successor ahead of time. Raises PlanError."""
    if device_type == "cpu" and torch.__version__ < "2.7":
        raise PlanError(f"unit 'fsdp': torch {torch.__version__} shards on GPUs only; take torch 2.7, or leave it out")
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(group.handle, device_type)
    sharded: list[Any] = [fully_shard(block, mesh=mesh, reshard_after_forward=True) for block in blocks]
    for block, following in pairwise(sharded):
        block.set_modules_to_forward_prefetch([following])
    root: Any = fully_shard(Together(blocks), mesh=mesh)
    root(torch.empty(0))
