"""Guidance branches in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Branch, Step


class CfgMerge(PipelineUnit):
    """One transformer call for all guidance branches: faster where one call alone does not fill the device.

    It takes the memory of as many calls.
    """

    name = "cfg-merge"
    exact = True

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor] | None:
        return None if len(branches) == 1 else step.forward(branches).chunk(len(branches))
