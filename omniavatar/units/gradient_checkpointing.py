"""Gradient checkpointing: what blocks compute is computed again on the way back instead of being kept."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from omniavatar.engine.engine import Engine
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wrapped import Wrapped, is_wrapped, wrap_each


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
            wrap_each(getattr(network, "blocks", nn.ModuleList()), checkpointed)


class Checkpointed(Wrapped):
    """A block that keeps nothing but its input for gradients."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the block makes of its inputs."""
        return checkpoint(self.block, *inputs, use_reentrant=False, **named)


def checkpointed(block: nn.Module) -> nn.Module:
    """The block, checkpointed once, also if several engines work with it."""
    return block if is_wrapped(block, Checkpointed) else Checkpointed(block)
