"""Gradient checkpointing: what blocks compute is computed again on the way back instead of being kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniavatar.engine.rehearsing import NotRehearsed
from omniavatar.engine.saving import SavesMemory
from omniavatar.engine.unit import ALL, PipelineUnit
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine


class GradientCheckpointing(PipelineUnit, NotRehearsed, SavesMemory):
    """Training in less memory: every block runs twice, and only its input is kept. Does nothing when videos are made.

    After Chen et al. 2016, "Training deep nets with sublinear memory cost" (arXiv:1604.06174).
    """

    name = "gradient-checkpointing"
    exact = True
    optional_roles = (ALL,)
    eases = ("train",)

    @hookimpl(trylast=True)
    def setup(self, engine: Engine) -> None:
        from omniavatar.models.checkpointed import checkpoint_blocks

        for role in engine.plan.experts:
            engine.model(role)
        for role in engine.networks:
            network = engine.model(role)
            if hasattr(network, "blocks"):
                checkpoint_blocks(network.blocks)
