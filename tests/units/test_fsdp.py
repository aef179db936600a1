"""On one rank nothing is sharded; what several ranks hold and make is checked in tests/distributed."""

from __future__ import annotations

import torch

from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.units import Fsdp
from tests.distributed.scenes import RandomModels


def test_alone_every_weight_stays_whole() -> None:
    engine = Engine(Plan((Fsdp(),)), RandomModels())
    engine.set_up()
    assert {type(weight) for weight in engine.model("dit").parameters()} == {torch.nn.Parameter}
