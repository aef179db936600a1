"""On one rank nothing is sharded; what several ranks hold and make is checked in tests/distributed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.engine.unit import PipelineUnit
from omniavatar.units import Fsdp
from tests.distributed.scenes import RandomModels


def test_alone_every_weight_stays_whole() -> None:
    engine = Engine(Plan((Fsdp(),)), RandomModels())
    engine.set_up()
    assert {type(weight) for weight in engine.model("dit").parameters()} == {torch.nn.Parameter}


class Branch(PipelineUnit):
    """Works with a network of a plugin."""

    name = "branch"
    roles = ("dit", "vae")
    optional_roles = ("branch", "absent")


class Seen(RandomModels):
    """Where every network is loaded to."""

    roles = (*RandomModels.roles, "branch")

    def __init__(self) -> None:
        self.devices: dict[str, str] = {}

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        self.devices[role] = device.type
        return super().load("dit" if role == "branch" else role, device=device, dtype=dtype, **constructor)


def test_all_networks_of_the_plan_come_by_way_of_host_memory_to_the_device() -> None:
    models = Seen()
    engine = Engine(Plan((Branch(), Fsdp())), models, device="meta")
    engine.set_up()
    assert models.devices == {"dit": "cpu", "vae": "cpu", "branch": "cpu"}
    for role in models.devices:
        assert {weight.device.type for weight in engine.model(role).parameters()} == {"meta"}
