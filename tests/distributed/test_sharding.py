"""Shards of tokens: equal lengths, in order, padding at the end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omniavatar.distributed.groups import Group
from omniavatar.distributed.sharding import Sharding


class Gathering(Group):
    """A group whose other ranks' shards are known."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        whole = torch.arange(7.0)[None]
        return [Sharding(Group(rank, self.size), 7).shard(whole) for rank in range(self.size)]


@pytest.mark.parametrize(
    ("length", "size", "shards"),
    [
        (4, 2, [[0, 1], [2, 3]]),
        (5, 2, [[0, 1, 2], [3, 4, -1]]),
        (5, 4, [[0, 1], [2, 3], [4, -1], [-1, -1]]),
        (1, 3, [[0], [-1], [-1]]),
        (3, 1, [[0, 1, 2]]),
    ],
)
def test_shards_are_equal_and_padded_at_the_end(length: int, size: int, shards: list[list[int]]) -> None:
    tokens = torch.arange(length)
    found = [Sharding(Group(rank, size), length).shard(tokens, dim=0, fill=-1).tolist() for rank in range(size)]
    assert found == shards


def test_any_axis_may_be_that_of_the_tokens() -> None:
    tokens = torch.arange(30).view(2, 5, 3)
    second = Sharding(Group(1, 2), 5).shard(tokens)
    assert torch.equal(second[:, :2], tokens[:, 3:])
    assert torch.equal(second[:, 2], torch.zeros(2, 3, dtype=torch.int64))


def test_gathering_cuts_the_padding_off() -> None:
    sharding = Sharding(Gathering(1, 4), 7)
    whole = torch.arange(7.0)[None]
    assert torch.equal(sharding.gather(sharding.shard(whole)), whole)
