"""Sharded weights: every rank keeps a part of each block and gathers the rest when the block runs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from omniavatar.distributed.groups import Group
from omniavatar.engine.engine import Engine
from omniavatar.engine.unit import ALL, PipelineUnit
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl


class Fsdp(PipelineUnit):
    """Less memory per GPU: the blocks of all networks that have some are sharded over all ranks (torch's FSDP2).

    Those are the transformers, the text encoder, and whatever a plugin brings as `blocks`, a list of modules that work
    one after the other, each within its own call. Each block's weights are gathered while the block before it computes.
    They come from host memory block by block, so that no GPU ever holds all blocks of a network.
    """

    name = "fsdp"
    exact = True
    roles = ("dit",)
    host_roles = (ALL,)

    @hookimpl(trylast=True)
    def setup(self, engine: Engine) -> None:
        for role in engine.roles:
            network = engine.model(role)
            blocks = getattr(network, "blocks", None) if engine.world.size > 1 else None
            if blocks is not None:
                shard_blocks(blocks, engine.device.type, engine.groups.world)
            bring_rest(network, blocks, engine.device)


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
