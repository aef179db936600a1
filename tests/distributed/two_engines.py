"""One rank of a world whose processes make groups several times, by torch and by what stands in for xfuser.

python tests/distributed/two_engines.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import distributed

from omniavatar.distributed.groups import AXES, Group, Groups
from omniavatar.distributed.world import joined, place

CPU = torch.device("cpu")
SHAPES = ((1, 2, 1, 2), (1, 1, 2, 2), (2, 1, 2, 1), (1, 2, 1, 2))


class GroupCoordinator:
    """As xfuser's: a group for the device and one for the host."""

    def __init__(self, group_ranks: Sequence[Sequence[int]], local_rank: int, backend: str) -> None:
        for ranks in group_ranks:
            both = distributed.new_group(ranks, backend=backend), distributed.new_group(ranks, backend="gloo")
            if distributed.get_rank() in ranks:
                self.device_group, self.cpu_group = both

    def destroy(self) -> None:
        distributed.destroy_process_group(self.device_group)
        distributed.destroy_process_group(self.cpu_group)


def rank_groups(world_size: int, parallel_size: Sequence[int], mask: Sequence[bool]) -> list[list[int]]:
    """As xfuser's: the first axis is that of neighbours, and ranks of a group go along the first axes fastest."""
    grid = np.arange(world_size).reshape(parallel_size[::-1])
    axes = [axis for axis, inside in enumerate(mask[::-1]) if inside]
    moved = np.moveaxis(grid, axes, range(-len(axes), 0))
    ranks: list[list[int]] = moved.reshape(-1, np.prod([grid.shape[axis] for axis in axes], dtype=int)).tolist()
    return ranks


def put_in_place_of_xfuser() -> None:
    """Modules with the two names that we take from xfuser."""
    coordinator: Any = ModuleType("xfuser.core.distributed.group_coordinator")
    utils: Any = ModuleType("xfuser.core.distributed.utils")
    coordinator.GroupCoordinator, utils.generate_masked_orthogonal_rank_groups = GroupCoordinator, rank_groups
    packages = [ModuleType(name) for name in ("xfuser", "xfuser.core", "xfuser.core.distributed")]
    sys.modules.update({module.__name__: module for module in (*packages, coordinator, utils)})


def parts(groups: Groups) -> list[Group]:
    """All groups but the world."""
    return [getattr(groups, name) for name in (*AXES, "sequence")]


def check_that_all_talk(groups: Groups) -> None:
    """Every group gathers the numbers of its ranks, in their order."""
    for group in parts(groups):
        assert torch.cat(group.gather(torch.tensor([group.rank]))).tolist() == list(range(group.size))


def main() -> None:
    put_in_place_of_xfuser()
    with joined(place(), CPU, 20.0):
        made = [(Groups._by_torch(shape, CPU), Groups._by_xfuser(shape, CPU)) for shape in SHAPES]
        for shape, (one, other) in zip(SHAPES, made, strict=True):
            assert [group.size for group in parts(one)][:4] == list(shape)
            for ours, theirs in zip(parts(one), parts(other), strict=True):
                assert distributed.get_process_group_ranks(ours.handle) == distributed.get_process_group_ranks(
                    theirs.handle
                )
        for one, other in made:
            check_that_all_talk(one)
            check_that_all_talk(other)
        distributed.barrier()
        for one, other in made[:2]:
            one.close()
            other.close()
        for one, other in made[2:]:
            check_that_all_talk(one)
            check_that_all_talk(other)
        distributed.barrier()


if __name__ == "__main__":
    main()
