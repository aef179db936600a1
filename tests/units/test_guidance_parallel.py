"""Which branches a rank computes; what comes of it is checked in tests/distributed."""

from __future__ import annotations

import pytest

from omniavatar.distributed.groups import Group
from omniavatar.distributed.world import World
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.errors import PlanError
from omniavatar.units import GuidanceParallel
from omniavatar.units.guidance_parallel import share
from tests.distributed.scenes import RandomModels


def degrees(ranks: int, degree: int) -> dict[str, int]:
    plan = Plan((GuidanceParallel(degree=degree),))
    return Engine(plan, RandomModels(), world=World(size=ranks)).degrees()


@pytest.mark.parametrize(
    ("branches", "size", "shares"),
    [
        ("ab", 2, ["a", "b"]),
        ("abc", 3, ["a", "b", "c"]),
        ("abc", 2, ["ac", "ba"]),
        ("ab", 3, ["a", "b", "a"]),
        ("abcd", 3, ["ad", "ba", "cb"]),
    ],
)
def test_every_rank_makes_as_many_calls_as_any_other(branches: str, size: int, shares: list[str]) -> None:
    found = ["".join(share(list(branches), Group(rank, size))) for rank in range(size)]  # type: ignore[arg-type]
    assert found == shares


@pytest.mark.parametrize(("ranks", "degree"), [(2, 2), (6, 3), (8, 2)])
def test_the_degree_is_that_of_the_settings(ranks: int, degree: int) -> None:
    assert degrees(ranks, degree) == {"guidance": degree}


@pytest.mark.parametrize(
    ("ranks", "degree", "valid"),
    [
        (4, 3, "degree=2"),
        (9, 2, "degree=3"),
        (5, 2, "none, so leave it out or take a multiple of 2 or 3 ranks"),
        (1, 2, "none, so leave it out or take a multiple of 2 or 3 ranks"),
    ],
)
def test_a_degree_that_does_not_divide_the_ranks_lists_those_that_do(ranks: int, degree: int, valid: str) -> None:
    message = rf"guidance-parallel\(degree={degree}\) does not divide {ranks} ranks; valid: {valid}$"
    with pytest.raises(PlanError, match=message):
        degrees(ranks, degree)
