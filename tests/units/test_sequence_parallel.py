"""How many ranks exchange heads and how many pass keys around; what they compute is checked in tests/distributed."""

from __future__ import annotations

from typing import NoReturn

import pytest

from omniavatar.distributed.attention import sequence_attention
from omniavatar.distributed.groups import Group, Groups
from omniavatar.distributed.sharding import Sharding
from omniavatar.distributed.world import World
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError
from omniavatar.units import GuidanceParallel, SequenceParallel
from tests.distributed.scenes import RandomModels


def degrees(ranks: int, *units: PipelineUnit, hosts: int = 1) -> dict[str, int]:
    """Of an engine on this many ranks whose transformer has 4 heads."""
    world = World(size=ranks, local_size=ranks // hosts)
    return Engine(Plan(units), RandomModels(), world=world).degrees()


@pytest.mark.parametrize(
    ("ranks", "ring", "ulysses"), [(1, 1, 1), (2, 1, 2), (4, 1, 4), (3, 3, 1), (6, 3, 2), (8, 2, 4), (64, 16, 4)]
)
def test_by_itself_it_takes_as_many_for_ulysses_as_divide_the_heads(ranks: int, ring: int, ulysses: int) -> None:
    assert degrees(ranks, SequenceParallel()) == {"ring": ring, "ulysses": ulysses}


@pytest.mark.parametrize(
    ("settings", "ring", "ulysses"),
    [({"ulysses": 2}, 4, 2), ({"ring": 4}, 4, 2), ({"ring": 8}, 8, 1), ({"ulysses": 4, "ring": 2}, 2, 4)],
)
def test_what_is_left_open_takes_the_remaining_ranks(settings: dict[str, int], ring: int, ulysses: int) -> None:
    assert degrees(8, SequenceParallel(**settings)) == {"ring": ring, "ulysses": ulysses}


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"ulysses": 8}, "ulysses=8"),
        ({"ulysses": 3}, "ulysses=3"),
        ({"ring": 3}, "ring=3"),
        ({"ring": 16}, "ring=16"),
        ({"ring": 1}, "ring=1"),
        ({"ulysses": 2, "ring": 2}, "ulysses=2, ring=2"),
    ],
)
def test_a_split_that_does_not_fit_lists_those_that_do(settings: dict[str, int], asked: str) -> None:
    with pytest.raises(PlanError) as caught:
        degrees(8, SequenceParallel(**settings))
    assert str(caught.value) == (
        f"sequence-parallel({asked}) does not fit 8 ranks and 4 heads; "
        "valid: ulysses=1, ring=8; ulysses=2, ring=4; ulysses=4, ring=2"
    )


@pytest.mark.parametrize("first", [True, False])
def test_guidance_takes_its_ranks_whatever_the_order_of_the_plan(first: bool) -> None:
    units: list[PipelineUnit] = [GuidanceParallel(), SequenceParallel()]
    assert degrees(8, *(units if first else units[::-1])) == {"guidance": 2, "ring": 1, "ulysses": 4}


def test_heads_that_the_remaining_ranks_do_not_divide() -> None:
    assert degrees(12, GuidanceParallel(degree=2), SequenceParallel()) == {"guidance": 2, "ring": 3, "ulysses": 2}


def test_alone_it_changes_nothing() -> None:
    assert degrees(1, SequenceParallel()) == {"ring": 1, "ulysses": 1}


def test_by_itself_it_exchanges_heads_inside_a_host_only() -> None:
    assert degrees(8, SequenceParallel(), hosts=4) == {"ring": 4, "ulysses": 2}
    assert degrees(8, SequenceParallel(ulysses=4), hosts=4) == {"ring": 2, "ulysses": 4}


def test_the_split_is_known_without_loading_anything() -> None:
    class Unloadable(RandomModels):
        def load(self, *args: object, **kwargs: object) -> NoReturn:
            raise AssertionError("loaded")

    engine = Engine(Plan((SequenceParallel(ulysses=3),)), Unloadable(), world=World(size=3, local_size=3))
    with pytest.raises(PlanError, match=r"sequence-parallel\(ulysses=3\) does not fit 3 ranks and 4 heads"):
        engine.check_split()
    Engine(Plan((SequenceParallel(),)), Unloadable(), world=World(size=4, local_size=2)).check_split()


def test_what_guidance_takes_is_told() -> None:
    with pytest.raises(PlanError, match=r"\(ulysses=4\) does not fit 2 of 4 ranks and 4 heads; valid: ulysses=1"):
        degrees(4, GuidanceParallel(), SequenceParallel(ulysses=4))


def test_alone_the_remedy_is_more_ranks() -> None:
    with pytest.raises(PlanError, match=r"\(ulysses=2\) does not fit 1 ranks .* start more with --gpus"):
        degrees(1, SequenceParallel(ulysses=2))


def test_a_ring_does_not_replace_another_attention_silently() -> None:
    group = Group(0, 2)
    groups = Groups(ring=group, sequence=group)
    with pytest.raises(PlanError, match=r"a ring joins parts of attention .* take sequence-parallel\(ring=1\)"):
        sequence_attention(lambda q, k, v: v, groups, Sharding(group, 4))
