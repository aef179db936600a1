"""Sharded weights: every rank keeps a part of each block and gathers the rest when the block runs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from omniavatar.distributed.groups import Group
from omniavatar.engine.engine import Engine
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl


class Fsdp(PipelineUnit):
    """Less memory per GPU: the blocks of transformers and text encoder are sharded over all ranks (torch's FSDP2).

    Each block's weights are gathered while the block before it computes. They come from host memory block by block, so
    that no GPU ever holds a whole network.
    """

    name = "fsdp"
    exact = True
    roles = ("dit",)
    optional_roles = ("dit2", "text_encoder")
    host_roles = ("dit", "dit2", "text_encoder")

    @hookimpl(trylast=True)
    def setup(self, engine: Engine) -> None:
        for role in self.host_roles:
            if role in engine.models:
                network = engine.model(role)
                if engine.world.size > 1:
                    shard_blocks(network.blocks, engine.device.type, engine.groups.world)
                bring_rest(network, engine)


def bring_rest(network: nn.Module, engine: Engine) -> None:
    """Move what is not sharded to the device."""
    for part in network.children():
        if engine.world.size == 1 or part is not network.blocks:
            part.to(engine.device)
    for weight in network.parameters(recurse=False):
        weight.data = weight.data.to(engine.device)


class Together(nn.Module):
    """Blocks as torch's FSDP wants them: below one root, whose streams they share, which must have run before them."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, nothing: Tensor) -> None:
        """Nothing: the blocks are called one by one by the engine. (On CUDA, FSDP expects an argument.)"""


def shard_blocks(blocks: nn.ModuleList, device_type: str, group: Group) -> None:
    """Shard each block over all ranks, and let each gather its successor ahead of time."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(group.handle, device_type)
    sharded: list[Any] = [fully_shard(block, mesh=mesh, reshard_after_forward=True) for block in blocks]
    for block, following in pairwise(sharded):
        block.set_modules_to_forward_prefetch([following])
    root: Any = fully_shard(Together(blocks), mesh=mesh)
    root(torch.empty(0))
