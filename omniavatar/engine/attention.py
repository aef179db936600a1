"""The attention strategy of an engine: one callable that every self-attention goes through and that units may wrap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from omniavatar.models.attention import Attention, sdpa


class AttentionSlot:
    """Calls the current strategy on q, k, v (b s heads head_dim). Networks hold it, so units may change it later."""

    def __init__(self, strategy: Attention = sdpa) -> None:
        self.strategy = strategy

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.strategy(q, k, v)

    def wrap(self, wrapper: Callable[[Attention], Attention]) -> None:
        """Replace the strategy by `wrapper(strategy)`. Example: an all-to-all before and after the inner strategy."""
        self.strategy = wrapper(self.strategy)

    @contextmanager
    def wrapped(self, wrapper: Callable[[Attention], Attention]) -> Iterator[None]:
        """`wrap` for the time of a with-block."""
        inner = self.strategy
        self.strategy = wrapper(inner)
        try:
            yield
        finally:
            self.strategy = inner
