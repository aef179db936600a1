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
    found = ["".join(share(list(branches), Group(rank, size))) for rank in range(size)]  # type: ignore[arg-type,misc]
    assert found == shares


@pytest.mark.parametrize(("ranks", "degree"), [(2, 2), (6, 3), (8, 2)])
def test_the_degree_is_that_of_the_settings(ranks: int, degree: int) -> None:
    assert degrees(ranks, degree) == {"guidance": degree}


@pytest.mark.parametrize(("ranks", "degree", "valid"), [(4, 3, "2"), (9, 2, "3"), (5, 2, "none"), (3, 2, "3")])
def test_a_degree_that_does_not_divide_the_ranks_lists_those_that_do(ranks: int, degree: int, valid: str) -> None:
    message = rf"guidance-parallel\(degree={degree}\) does not divide {ranks} ranks; valid: {valid}$"
    with pytest.raises(PlanError, match=message):
        degrees(ranks, degree)


def test_one_rank_has_nothing_to_divide() -> None:
    with pytest.raises(PlanError, match=r"guidance-parallel.degree=2. does not divide 1 ranks; valid: none"):
        degrees(1, 2)
