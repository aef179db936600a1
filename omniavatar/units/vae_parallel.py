"""VAE parallelism: the rows of the pictures spread over ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine


class VaeParallel(PipelineUnit):
    """Several GPUs for encoding and decoding: every rank has some rows of the pictures, which come out as from one."""

    name = "vae-parallel"
    exact = True
    roles = ("vae",)

    @hookimpl
    def setup(self, engine: Engine) -> None:
        if engine.world.size > 1:
            from omniavatar.distributed.row_parallel import RowParallel
            from omniavatar.models.wan_vae import AttentionBlock

            vae, group = engine.model("vae"), engine.groups.world
            vae.encoder = RowParallel(vae.encoder, group, AttentionBlock, in_scale=vae.spatial_factor)
            vae.decoder = RowParallel(vae.decoder, group, AttentionBlock, out_scale=vae.spatial_factor)
