"""Attention as a strategy: any callable on (batch, tokens, heads, head_dim) tensors.

    out = sdpa(q, k, v)   # q (b s h d), k and v (b n h d) -> (b s h d)

A network receives one in its constructor and calls it for every self-attention; it never knows which one it is. A
layer inside a block also says where it stands, by an `Address`, and an `AttentionSlot` passes that on to those who
have asked for it:

    slot.wrap(lambda inner: all_to_all_around(inner))            # the same everywhere
    slot.wrap_at(lambda inner, at: masked(inner, at.index))      # depends on the block
    slot.cross.wrap_at(lambda inner, at: ...)                    # cross-attention, to what `at.condition` names
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from einops import rearrange
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from omniavatar.models.wan_dit import BlockInputs

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention with scale 1/sqrt(d): q (b s h d), k and v (b n h d) -> (b s h d).

    mask: (s n), or with (b h) in front, 1 for one of both: true where a query may attend; or what is added to scores.
    """
    q, k, v = (rearrange(x, "b s h d -> b h s d") for x in (q, k, v))
    return rearrange(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b h s d -> b s h d")


@dataclass(eq=False)
class Address:
    """Where an attention is computed.

    layer: the attention layer, with its projections. inputs: what its block was given: conditions, positions, the call.
    condition: the name of what is attended to; None in a self-attention.
    """

    layer: Any
    inputs: BlockInputs
    condition: str | None = None

    @property
    def index(self) -> int:
        """The number of the block. Compiled code that reads it is compiled for each block anew."""
        return self.inputs.index


Wrapper = Callable[[Attention], Attention]
AddressedWrapper = Callable[[Attention, Address], Attention]


class Slot:
    """Calls the current strategy on q, k, v (b s heads head_dim). Networks hold it, so units may change it later."""

    def __init__(self, strategy: Attention = sdpa) -> None:
        self.strategy = strategy
        self._above: list[AddressedWrapper] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, at: Address | None = None) -> Tensor:
        """q (b s h d), k and v (b n h d) -> (b s h d).

        Without an address, what depends on one is left out.
        """
        attend = self.strategy
        if at is not None:
            for wrapper in self._above:
                attend = wrapper(attend, at)
        return attend(q, k, v)

    def wrap(self, wrapper: Wrapper) -> None:
        """Replace the strategy by `wrapper(strategy)`. Example: an all-to-all before and after the inner strategy."""
        if self._above:
            self._above.append(lambda inner, _: wrapper(inner))
        else:
            self.strategy = wrapper(self.strategy)

    def wrap_at(self, wrapper: AddressedWrapper) -> None:
        """Replace the strategy, at each address by `wrapper(strategy, address)`.

        It gets queries and keys as they are when they are multiplied, with their positions. It may attend with `sdpa`
        and a mask, put keys and values in front of its own, attend twice, and leave what it has found beside the
        result in `at.inputs.beside`. Where ranks share the heads of a self-attention it sees all tokens and the heads
        of this rank, so what it keeps or masks needs no other rank.
        """
        self._above.append(wrapper)

    @contextmanager
    def wrapped(self, wrapper: Wrapper) -> Iterator[None]:
        """`wrap` for the time of a with-block."""
        with self._restored():
            self.wrap(wrapper)
            yield

    @contextmanager
    def wrapped_at(self, wrapper: AddressedWrapper) -> Iterator[None]:
        """`wrap_at` for the time of a with-block."""
        with self._restored():
            self.wrap_at(wrapper)
            yield

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Have all as it is now when the with-block ends."""
        strategy, above = self.strategy, list(self._above)
        try:
            yield
        finally:
            self.strategy, self._above = strategy, above


class AttentionSlot(Slot):
    """The attentions of a network: itself the slot of all self-attentions; `cross` is that of all cross-attentions."""

    def __init__(self, strategy: Attention = sdpa) -> None:
        super().__init__(strategy)
        self.cross = Slot()


def slot_of(attention: Attention) -> AttentionSlot:
    """What layers call: the slot itself, or one that has this strategy."""
    slot: Any = attention if hasattr(attention, "cross") else AttentionSlot(attention)
    return slot  # type: ignore[no-any-return]
