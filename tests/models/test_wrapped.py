"""Wrapped modules keep the names of their weights and stay one with what they wrap."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from omniavatar.models.wrapped import Wrapped, is_wrapped, wrap_each


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = 2
        self.inner = nn.Linear(2, 2)
        self.scale: Tensor = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x) * self.scale if not self.training else torch.zeros_like(x)
        return result


class Twice(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(self.block(x))
        return result


class Other(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x)
        return result


def test_names_weights_and_modes_are_those_of_the_block() -> None:
    block = Block().eval()
    outer = Other(Twice(block))
    assert list(outer.state_dict()) == list(block.state_dict())
    assert [name for name, _ in outer.named_modules()] == [name for name, _ in block.named_modules()]
    assert dict(outer.named_parameters()) == dict(block.named_parameters())
    assert outer.width == 2
    assert not outer.training
    assert outer.train().block.block is block
    assert block.training
    assert block.inner.training
    outer.eval()
    x = torch.randn(3, 2)
    torch.testing.assert_close(outer(x), block(block(x)))


def test_weights_that_are_set_from_outside_are_those_of_the_block() -> None:
    block: Any = Block().eval()
    outer: Any = Twice(block)
    outer.scale = nn.Parameter(torch.zeros(2))
    outer.to(torch.float64)
    assert block.scale.dtype == torch.float64
    assert not outer(torch.ones(1, 2, dtype=torch.float64)).any()
    outer.load_state_dict(Block().state_dict())
    assert block.scale.tolist() == [1, 1]


def test_a_copy_is_a_module_of_its_own() -> None:
    block = Block().eval()
    twin: Any = copy.deepcopy(Twice(block))
    with torch.no_grad():
        block.scale.zero_()
    assert twin.block is not block
    assert twin.scale.tolist() == twin.block.scale.tolist() == [1, 1]


def test_blocks_that_are_one_stay_one() -> None:
    block = Block()
    blocks = nn.ModuleList([block, block, Block()])
    wrap_each(blocks, Twice)
    assert blocks[0] is blocks[1] is not blocks[2]
    assert is_wrapped(Other(blocks[0]), Twice)
    assert not is_wrapped(block, Twice)
