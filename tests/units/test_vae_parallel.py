"""On one rank nothing is spread; what several ranks make is checked in tests/distributed."""

from __future__ import annotations

from omniavatar.distributed.groups import Group
from omniavatar.distributed.row_parallel import Rows
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.units import VaeParallel
from tests.distributed.scenes import RandomModels


def test_alone_the_vae_stays_as_it_is() -> None:
    engine = Engine(Plan((VaeParallel(),)), RandomModels())
    engine.set_up()
    assert type(engine.model("vae").decoder).__name__ == "Decoder"


def test_rows_are_shared_as_equally_as_possible() -> None:
    assert Rows.share(11, Group(size=4)).heights == (3, 3, 3, 2)
    assert Rows.share(4, Group(size=4)).heights == (1, 1, 1, 1)
