"""Gradient checkpointing: what blocks compute is computed again on the way back instead of being kept."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from omniavatar.engine.engine import Engine
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl


class GradientCheckpointing(PipelineUnit):
    """Training in less memory: every block runs twice, and only its input is kept. Does nothing when videos are made.

    After Chen et al. 2016, "Training deep nets with sublinear memory cost" (arXiv:1604.06174).
    """

    name = "gradient-checkpointing"
    exact = True
    roles = ("dit",)
    rehearses = False
    eases = ("train",)

    @hookimpl(trylast=True)
    def setup(self, engine: Engine) -> None:
        networks = {"dit": engine.model("dit"), **engine.networks}
        for network in networks.values():
            for block in getattr(network, "blocks", ()):
                recompute(block)


def recompute(block: nn.Module) -> None:
    """Let a block keep nothing but its input for gradients, once if several engines work with it."""
    forward: Any = block.forward
    if getattr(forward, "func", None) is not checkpoint:
        block.forward = partial(checkpoint, forward, use_reentrant=False)
