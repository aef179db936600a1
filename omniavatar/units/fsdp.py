"""Sharded weights: every rank keeps a part of each block and gathers the rest when the block runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniavatar.engine.placing import PlacesWeights
from omniavatar.engine.unit import ALL, PipelineUnit
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine


class Fsdp(PipelineUnit, PlacesWeights):
    """Less memory per GPU: the blocks of all networks that have some are sharded over all ranks (torch's FSDP2).

    Those are the transformers, the text encoder, and whatever a plugin brings as `blocks`, a list of modules that work
    one after the other, each within its own call. Each block's weights are gathered while the block before it computes.
    They come from host memory block by block, so that no GPU ever holds all blocks of a network.
    """

    name = "fsdp"
    exact = True
    optional_roles = (ALL,)
    host_roles = (ALL,)

    @hookimpl(trylast=True)
    def setup(self, engine: Engine) -> None:
        from omniavatar.distributed.sharded_blocks import bring_rest, shard_blocks

        for role in engine.roles:
            network = engine.model(role)
            blocks = getattr(network, "blocks", None) if engine.world.size > 1 else None
            if blocks is not None:
                shard_blocks(blocks, engine.device.type, engine.groups.world)
            bring_rest(network, blocks, engine.device)
