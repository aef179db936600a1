"""Groups of ranks, as far as no second process is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omniavatar.distributed.groups import Group, Groups
from omniavatar.distributed.world import ALONE, World
from omniavatar.errors import PlanError
from tests.distributed.conftest import run_program

CPU = torch.device("cpu")


def test_alone_all_groups_have_one_rank() -> None:
    assert Groups.make(ALONE, {}, CPU) == Groups()


def test_ranks_without_work_are_refused_with_a_remedy() -> None:
    with pytest.raises(PlanError) as caught:
        Groups.make(World(size=4), {"guidance": 2}, CPU)
    assert str(caught.value) == (
        "the plan spreads its work over 2 of 4 ranks (guidance 2); "
        "add sequence-parallel, which takes those that are left"
    )


def test_a_plan_that_spreads_nothing_does_not_fit_several_ranks() -> None:
    with pytest.raises(PlanError, match="the plan spreads its work over 1 of 2 ranks; add sequence-parallel"):
        Groups.make(World(size=2), {}, CPU)


@pytest.mark.slow
def test_several_engines_of_a_process_have_groups_of_their_own(tmp_path: Path) -> None:
    """Of other shapes too, by torch and by xfuser, which must mean the same by them; closing some leaves the others."""
    run_program(["-m", "tests.distributed.two_engines"], 4, tmp_path, seconds=120)


def test_groups_are_given_back_in_order() -> None:
    closed: list[str] = []
    Groups(closing=(lambda: closed.append("one"), lambda: closed.append("two"))).close()
    assert closed == ["one", "two"]
    Groups().close()


def test_a_group_of_one_moves_nothing() -> None:
    tensor = torch.ones(2)
    assert Group().gather(tensor) == [tensor]
    assert Group().broadcast(tensor, 0) is tensor
