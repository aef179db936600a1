"""Groups of ranks, as far as no second process is needed."""

from __future__ import annotations

import pytest
import torch

from omniavatar.distributed.groups import Group, Groups, splits
from omniavatar.distributed.world import ALONE, World
from omniavatar.errors import PlanError

CPU = torch.device("cpu")


def test_alone_all_groups_have_one_rank() -> None:
    assert Groups.make(ALONE, {}, CPU) == Groups()


def test_a_grid_that_is_not_the_world_lists_the_ones_that_are() -> None:
    with pytest.raises(PlanError) as caught:
        Groups.make(World(size=4), {"ulysses": 3}, CPU)
    assert str(caught.value) == (
        "guidance 1 x ring 1 x ulysses 3 makes 3 ranks, there are 4; valid splits: "
        "guidance 1 x ring 1 x ulysses 4; guidance 1 x ring 2 x ulysses 2; guidance 1 x ring 4 x ulysses 1; "
        "guidance 2 x ring 1 x ulysses 2; guidance 2 x ring 2 x ulysses 1"
    )


def test_a_plan_that_spreads_nothing_does_not_fit_several_ranks() -> None:
    with pytest.raises(PlanError, match="makes 1 ranks, there are 2; valid splits: guidance 1 x ring 1 x ulysses 2"):
        Groups.make(World(size=2), {}, CPU)


@pytest.mark.parametrize("ranks", [2, 3, 6, 8])
def test_splits_are_the_grids_of_that_many_ranks(ranks: int) -> None:
    grids = [tuple(int(word) for word in split.split() if word.isdigit()) for split in splits(ranks).split("; ")]
    assert len(set(grids)) == len(grids)
    assert all(guidance * ring * ulysses == ranks and guidance <= 3 for guidance, ring, ulysses in grids)
    assert (1, 1, ranks) in grids


def test_a_group_of_one_moves_nothing() -> None:
    tensor = torch.ones(2)
    assert Group().gather(tensor) == [tensor]
    assert Group().broadcast(tensor, 0) is tensor
