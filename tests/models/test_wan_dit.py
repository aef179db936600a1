from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from omniavatar.models.attention import Attention, sdpa
from omniavatar.models.wan_dit import BlockInputs, CrossAttention, PerToken, WanBlock, WanDiT
from tests.models.networks import checkpoint_hash, noise, randomized, relative_error

TINY: dict[str, Any] = {
    "dim": 48,
    "in_dim": 6,
    "ffn_dim": 80,
    "out_dim": 4,
    "text_dim": 20,
    "freq_dim": 32,
    "eps": 1e-6,
    "patch_size": (1, 2, 2),
    "num_heads": 4,
    "num_layers": 2,
}
GRID = (3, 2, 3)
TOKENS = 18
# Two float32 programs that sum in another order.
ROUNDING = 2e-6
DIFFUSERS_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    ".attn1.": ".self_attn.",
    ".attn2.": ".cross_attn.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    ".to_out.0.": ".o.",
    ".norm2.": ".norm3.",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "proj_out": "head.head",
}


@pytest.fixture(scope="module")
def dit() -> WanDiT:
    return randomized(WanDiT(**TINY))


def example(batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, time step and text rows; every sample has its own."""
    return noise(batch, 6, 3, 4, 6, seed=1), torch.linspace(40, 900, batch), noise(batch, 7, 20, seed=2)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}, "9269f8db9040a9d860eaca435be61814"),
        ({"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}, "aafcfd9672c3a2456dc46e1cb6e52c70"),
    ],
    ids=["1.3B", "14B"],
)
def test_keys_and_shapes_are_those_of_the_published_files(numbers: dict[str, Any], expected: str) -> None:
    with torch.device("meta"):
        network = WanDiT(**numbers, in_dim=16, out_dim=16, text_dim=4096, freq_dim=256, eps=1e-6, patch_size=(1, 2, 2))
    assert checkpoint_hash(network.state_dict()) == expected
    assert not list(network.buffers())


def official_name(name: str) -> str:
    """The name in the official file of a parameter of diffusers' network."""
    if name.endswith("scale_shift_table"):
        return name.replace("scale_shift_table", "modulation" if "blocks" in name else "head.modulation")
    for theirs, ours in DIFFUSERS_NAMES.items():
        name = name.replace(theirs, ours)
    return name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("per_token", [False, True])
def test_output_equals_diffusers(per_token: bool) -> None:
    diffusers: Any = importlib.import_module("diffusers")
    theirs: nn.Module = randomized(
        diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=4,
            attention_head_dim=12,
            in_channels=6,
            out_channels=4,
            text_dim=20,
            freq_dim=32,
            ffn_dim=80,
            num_layers=2,
            cross_attn_norm=True,
        )
    )
    ours = WanDiT(**TINY)
    ours.load_state_dict({official_name(name): tensor for name, tensor in theirs.state_dict().items()})
    latents, _, context = example(batch=2)
    # Small time steps: diffusers takes the sinusoid in float32, which costs 3e-5 near 1000.
    timestep = torch.arange(2 * TOKENS).reshape(2, TOKENS) % 5 if per_token else torch.tensor([3.0, 1.0])
    with torch.no_grad():
        expected = theirs(latents, timestep, context, return_dict=False)[0]
        assert relative_error(ours(latents, timestep, context), expected) < 1e-5


def test_a_batch_is_the_stack_of_its_samples(dit: WanDiT) -> None:
    inputs = example(batch=3)
    with torch.no_grad():
        singles = [dit(*(tensor[i : i + 1] for tensor in inputs)) for i in range(3)]
        assert relative_error(dit(*inputs), torch.cat(singles)) < ROUNDING


def test_one_time_step_serves_a_whole_batch(dit: WanDiT) -> None:
    latents, _, context = example(batch=2)
    with torch.no_grad():
        shared = dit(latents, torch.tensor([500.0]), context)
        assert relative_error(shared, dit(latents, torch.tensor([500.0, 500.0]), context)) < ROUNDING


def test_equal_time_steps_for_all_tokens_are_one_time_step(dit: WanDiT) -> None:
    latents, timestep, context = example(batch=2)
    with torch.no_grad():
        per_token = dit(latents, timestep[:, None].expand(2, TOKENS), context)
        assert relative_error(per_token, dit(latents, timestep, context)) < ROUNDING


def written_out(block: Any, x: Tensor, context: Tensor, t_mod: Tensor, rope: Tensor) -> Tensor:
    """A block's arithmetic with the modulation of all tokens written out (b s 6 d)."""
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (block.modulation + t_mod).unbind(-2)
    inputs = BlockInputs(t_mod, rope, {"text": context})
    x = x + gate * block.self_attn(block.norm1(x) * (1 + scale) + shift, inputs)
    x = x + block.cross_attn(block.norm3(x), inputs)
    residual: Tensor = block.ffn(block.norm2(x) * (1 + ffn_scale) + ffn_shift)
    made: Tensor = x + ffn_gate * residual
    return made


def own_times(dit: WanDiT, batch: int = 2, copies: int = 1) -> tuple[PerToken, PerToken]:
    """Every second token of the first sample, and every third of the second, is told time step 0."""
    places = torch.arange(TOKENS * copies)
    return dit.embed_token_times(torch.stack([500.0 * (places % (2 + sample) > 0) for sample in range(batch)]))


def test_tokens_may_have_time_steps_of_their_own(dit: WanDiT) -> None:
    latents, _, context = example(batch=2)
    with torch.no_grad():
        x, grid = dit.embed_patches(latents)
        t_emb, t_mod = own_times(dit)
        assert (t_emb.rows.shape, t_mod.rows.shape, t_mod.index.shape) == ((2, 48), (2, 6, 48), (2, TOKENS))
        block, text, rope = dit.blocks[0], dit.embed_text(context), dit.rope(grid)
        assert torch.equal(
            block(x, BlockInputs(t_mod, rope, {"text": text})), written_out(block, x, text, t_mod.values, rope)
        )
        shift, scale = (dit.head.modulation + t_emb.values[:, :, None]).unbind(-2)
        assert torch.equal(dit.head(x, t_emb), dit.head.head(dit.head.norm(x) * (1 + scale) + shift))


def test_the_same_change_for_all_tokens(dit: WanDiT) -> None:
    _, t_mod = own_times(dit)
    change = torch.randn(1, 6, 48)
    assert torch.equal((t_mod + change).values, t_mod.values + change)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made meanwhile."""

    numbers: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, *(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)), 0)
        return made


def test_modulations_of_their_own_take_no_memory() -> None:
    """Nothing is larger than the feed-forward's middle, although the modulations of all tokens would be."""
    with torch.device("meta"):
        dit = WanDiT(**{**TINY, "ffn_dim": 4 * TINY["dim"]}, attention=lambda q, k, v: v)
        x, text, rope = torch.empty(1, 1000, 48), torch.empty(1, 1, 48), torch.empty(1000, 6, 2)
        t_mod = PerToken(torch.empty(2, 6, 48), torch.empty(1, 1000, dtype=torch.int64))
        with torch.no_grad(), Largest() as largest:
            dit.blocks[0](x, BlockInputs(t_mod, rope, {"text": text}))
    assert largest.numbers == 1000 * 4 * 48


def test_forward_is_the_composition_of_the_public_methods(dit: WanDiT) -> None:
    latents, timestep, context = example(batch=2)
    with torch.no_grad():
        x, grid = dit.embed_patches(latents)
        assert (x.shape, grid, x.is_contiguous()) == ((2, TOKENS, 48), GRID, True)
        t_emb, t_mod = dit.embed_time(timestep)
        assert (t_emb.shape, t_mod.shape) == ((2, 48), (2, 6, 48))
        inputs = BlockInputs(t_mod, dit.rope(grid), {"text": dit.embed_text(context)})
        for block in dit.blocks:
            x = block(x, inputs)
        assert torch.equal(dit.unembed(x, t_emb, grid), dit(latents, timestep, context))


def test_bfloat16_follows_float32(dit: WanDiT) -> None:
    narrow = WanDiT(**TINY).bfloat16()
    narrow.load_state_dict(dit.state_dict())
    inputs = example(batch=2)
    with torch.no_grad():
        out = narrow(*inputs)
        assert out.dtype == torch.bfloat16
        assert relative_error(out, dit(*inputs)) < 0.05


def test_the_time_step_is_not_rounded_to_the_type_of_the_weights(dit: WanDiT) -> None:
    narrow = WanDiT(**TINY).bfloat16()
    narrow.load_state_dict(dit.state_dict())
    near, rounded = narrow.embed_time(torch.tensor([995.93, 996.0]))[0].float().unbind()
    assert (near - rounded).abs().max() > 1e-3  # bfloat16 would make 996 of both


def test_zero_rows_of_the_text_take_part(dit: WanDiT) -> None:
    latents, timestep, context = example()
    padded = torch.cat([context, torch.zeros(1, 5, 20)], dim=1)
    with torch.no_grad():
        assert relative_error(dit(latents, timestep, padded), dit(latents, timestep, context)) > 1e-3


def test_the_strategy_computes_every_self_attention_and_nothing_else() -> None:
    shapes: list[tuple[torch.Size, ...]] = []

    def recording(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shapes.append((q.shape, k.shape, v.shape))
        return sdpa(q, k, v)

    dit = randomized(WanDiT(**TINY, attention=recording))
    plain = randomized(WanDiT(**TINY))
    with torch.no_grad():
        assert torch.equal(dit(*example(batch=2)), plain(*example(batch=2)))
    assert shapes == [((2, TOKENS, 4, 12),) * 3] * 2


class PlainTextAttention(CrossAttention):
    """A cross-attention that a third party brings along: one more projection, added to the output."""

    def __init__(self, dim: int, num_heads: int, eps: float, attention: Attention = sdpa) -> None:
        super().__init__(dim, num_heads, eps, attention)
        self.extra = nn.Linear(dim, dim)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        extra: Tensor = self.extra(x)
        return super().forward(x, inputs) + extra


class OtherBlock(WanBlock):
    cross_attention = PlainTextAttention


class OtherDiT(WanDiT):
    block_class = OtherBlock


def test_a_subclass_brings_its_own_cross_attention() -> None:
    dit = randomized(OtherDiT(**TINY))
    plain = WanDiT(**TINY)
    extra = set(dit.state_dict()) - set(plain.state_dict())
    assert extra == {f"blocks.{i}.cross_attn.extra.{name}" for i in range(2) for name in ("weight", "bias")}
    plain.load_state_dict({name: tensor for name, tensor in dit.state_dict().items() if name not in extra})
    with torch.no_grad():
        assert relative_error(dit(*example()), plain(*example())) > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("per_token", [False, True])
def test_a_block_compiles_into_one_graph_for_all_blocks(dit: WanDiT, *, per_token: bool) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    for copies in (1, 2):  # as compile_blocks does it: for any number of tokens
        latents, timestep, context = example(batch=2)
        with torch.no_grad():
            x, grid = dit.embed_patches(latents.repeat(1, 1, copies, 1, 1))
            t_mod = own_times(dit, copies=copies)[1] if per_token else dit.embed_time(timestep)[1]
            conditions, rope = {"text": dit.embed_text(context)}, dit.rope(grid)
            expected = x
            for index, block in enumerate(dit.blocks):
                inputs = BlockInputs(t_mod, rope, conditions, index, call=object())
                compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=True)
                x, expected = compiled(x, inputs), block(expected, inputs)
        assert torch.equal(x, expected)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "dim 48 does not divide into num_heads 5"),
        ({"num_heads": 0}, "dim 48 does not divide into num_heads 0"),
        ({"num_heads": 3}, r"head_dim 16 splits into \(6, 5, 5\)"),
        ({"freq_dim": 31}, "freq_dim 31 must be even"),
        ({"patch_size": (2, 2)}, r"patch_size \(2, 2\) must be three"),
        ({"patch_size": (1, 0, 2)}, r"patch_size \(1, 0, 2\) must be three"),
    ],
)
def test_numbers_that_cannot_work_are_rejected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WanDiT(**{**TINY, **change})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 5, 3, 4, 6), r"shape \(1, 5, 3, 4, 6\); needed is \(b, 6, t, h, w\)"),
        ((6, 3, 4, 6), r"needed is \(b, 6, t, h, w\)"),
        ((1, 6, 3, 5, 6), r"\(3, 5, 6\) do not divide into \(1, 2, 2\)"),
    ],
)
def test_latents_that_do_not_fit_are_rejected(dit: WanDiT, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dit.embed_patches(noise(*shape))
