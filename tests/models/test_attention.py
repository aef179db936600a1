"""The slots through which all attentions of a network go: what wraps them knows the block and what is attended to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.models.attention import Address, Attention, AttentionSlot, Slot, sdpa
from omniavatar.models.wan_dit import BlockInputs, WanBlock, WanDiT
from tests.models.networks import noise, randomized, relative_error

SIZES: dict[str, Any] = {
    **{"dim": 24, "in_dim": 4, "ffn_dim": 32, "out_dim": 4, "text_dim": 10, "freq_dim": 8, "eps": 1e-6},
    **{"patch_size": (1, 2, 2), "num_heads": 2, "num_layers": 3},
}
TOKENS = 2 * 2 * 2


@pytest.fixture
def slot() -> AttentionSlot:
    return AttentionSlot()


@pytest.fixture
def dit(slot: AttentionSlot) -> WanDiT:
    return randomized(WanDiT(**SIZES, attention=slot)).requires_grad_(False)


def velocity(dit: WanDiT) -> Tensor:
    made: Tensor = dit(noise(1, 4, 2, 4, 4), torch.tensor([500.0]), noise(1, 3, 10, seed=1))
    return made


def test_every_attention_says_where_it_is(dit: WanDiT, slot: AttentionSlot) -> None:
    seen: list[tuple[int, str | None, bool]] = []

    def note(inner: Attention, at: Address) -> Attention:
        block: Any = dit.blocks[at.index]
        seen.append((at.index, at.condition, at.layer is (block.cross_attn if at.condition else block.self_attn)))
        return inner

    before = velocity(dit)
    slot.wrap_at(note)
    slot.cross.wrap_at(note)
    assert velocity(dit).equal(before)
    assert seen == [(index, what, True) for index in range(3) for what in (None, "text")]


def test_wrappers_of_both_kinds_nest_in_the_order_in_which_they_came() -> None:
    slot, seen = Slot(), []

    def step(name: str, inner: Attention) -> Attention:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen.append(name)
            return inner(q, k, v)

        return attend

    slot.wrap(lambda inner: step("kernel", inner))
    slot.wrap_at(lambda inner, at: step(f"at {at.index}", inner))
    slot.wrap(lambda inner: step("ranks", inner))
    x = noise(1, 4, 2, 4)
    at = Address(None, BlockInputs(x, x, {}, index=7))
    with slot.wrapped(lambda inner: step("outermost", inner)):
        assert slot(x, x, x, at).equal(sdpa(x, x, x))
    assert seen == ["outermost", "ranks", "at 7", "kernel"]
    seen.clear()
    slot(x, x, x)
    assert seen == ["kernel"], "whoever asks for an address has none"
    seen.clear()
    slot(x, x, x, at)
    assert seen == ["ranks", "at 7", "kernel"]


def test_a_block_may_take_a_mask(dit: WanDiT, slot: AttentionSlot) -> None:
    """With a mask that is true for all nothing changes; one block with a narrower one is another network."""
    before, allowed = velocity(dit), torch.ones(TOKENS, TOKENS, dtype=torch.bool)

    def masked(inner: Attention, at: Address) -> Attention:
        return (lambda q, k, v: sdpa(q, k, v, mask=allowed)) if at.index == 1 else inner

    slot.wrap_at(masked)
    torch.testing.assert_close(velocity(dit), before)
    allowed[: TOKENS // 2, TOKENS // 2 :] = False
    assert relative_error(velocity(dit), before) > 1e-4


def test_keys_from_outside_stand_in_front(slot: AttentionSlot) -> None:
    """Tokens of a second half that find the first half's keys and values attend as those of the whole.

    Keys come with their positions, so the first half's are kept as they are.
    """
    layer = randomized(WanBlock(dim=24, ffn_dim=32, num_heads=2, eps=1e-6, attention=slot)).self_attn
    x, rope = noise(1, 8, 24), noise(8, 6, 2, seed=1)
    whole = layer(x, BlockInputs(x, rope, {}))
    kept: list[tuple[Tensor, Tensor]] = []

    def cached(inner: Attention, at: Address) -> Attention:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept.append((k, v))
            keys, values = (torch.cat(parts, dim=1) for parts in zip(*kept, strict=True))
            return inner(q, keys, values)

        return attend

    slot.wrap_at(cached)
    layer(x[:, :4], BlockInputs(x, rope[:4], {}))
    torch.testing.assert_close(layer(x[:, 4:], BlockInputs(x, rope[4:], {})), whole[:, 4:])


def mapped(inner: Attention, at: Address) -> Attention:
    """Also leaves a map: how much every token attends to the first one."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bshd,bnhd->bhsn", q, k) / q.shape[-1] ** 0.5
        at.inputs.beside["map"] = scores.softmax(-1)[..., 0].mean(1)
        return inner(q, k, v)

    return attend


def test_a_map_may_stand_beside_the_result(slot: AttentionSlot) -> None:
    """A layer behind the self-attention of the same block finds it."""

    class Reader(WanBlock):
        def attend_to_conditions(self, x: Tensor, inputs: BlockInputs) -> Tensor:
            x = super().attend_to_conditions(x, inputs)
            return x + inputs.beside["map"][..., None] * inputs.conditions["audio"]

    block = randomized(Reader(dim=24, ffn_dim=32, num_heads=2, eps=1e-6, attention=slot))
    silent = randomized(WanBlock(dim=24, ffn_dim=32, num_heads=2, eps=1e-6))
    slot.wrap_at(mapped)
    conditions = {"text": noise(1, 3, 24), "audio": torch.zeros(1, 1, 24)}
    inputs = BlockInputs(noise(1, 6, 24), noise(4, 6, 2), conditions)
    x = noise(1, 4, 24, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(block(x, inputs), silent(x, inputs))
        conditions["audio"] = noise(1, 1, 24, seed=2)
        assert relative_error(block(x, inputs), silent(x, inputs)) > 1e-3
    assert inputs.beside["map"].shape == (1, 4)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_wrapped_slots_compile_into_one_graph_for_all_blocks(dit: WanDiT, slot: AttentionSlot) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def weakened(inner: Attention, at: Address) -> Attention:
        return lambda q, k, v: inner(q, k, v) * at.inputs.conditions["strength"]

    slot.wrap_at(mapped)
    slot.cross.wrap_at(weakened)
    x, rope = noise(1, TOKENS, 24), dit.rope((2, 2, 2))
    conditions = {"text": noise(1, 3, 24), "strength": torch.tensor(0.5)}
    for index, block in enumerate(dit.blocks):
        inputs = BlockInputs(noise(1, 6, 24), rope, conditions, index, call=object())
        made = torch.compile(block, fullgraph=True, backend=backend)(x, inputs)
        found = inputs.beside.pop("map")
        assert made.equal(block(x, inputs))
        assert found.equal(inputs.beside["map"])
    assert len(graphs) == 1


def test_some_samples_of_what_a_block_is_given() -> None:
    inputs = BlockInputs(noise(3, 6, 4), noise(5, 2, 2), {"text": noise(3, 2, 4), "shared": noise(1, 2, 4)}, index=4)
    some = inputs.samples(torch.tensor([2, 0]))
    assert isinstance(some.t_mod, Tensor)
    assert isinstance(inputs.t_mod, Tensor)
    assert some.t_mod.equal(inputs.t_mod[[2, 0]])
    assert some.conditions["text"].equal(inputs.conditions["text"][[2, 0]])
    assert some.conditions["shared"] is inputs.conditions["shared"]
    assert (some.rope, some.index) == (inputs.rope, 4)
