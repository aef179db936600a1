from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MT5Config, MT5EncoderModel, UMT5Config, UMT5EncoderModel

from omniavatar.models.umt5 import UMT5Encoder, relative_buckets
from tests.models.networks import checkpoint_hash, randomized, relative_error

TINY: dict[str, Any] = {
    "vocab": 60,
    "dim": 24,
    "dim_attn": 32,
    "dim_ffn": 40,
    "num_heads": 4,
    "num_layers": 2,
    "num_buckets": 32,
    "shared_pos": False,
}
THEIR_TINY: dict[str, Any] = {
    "vocab_size": 60,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_heads": 4,
    "num_layers": 2,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}
NAMES = {
    "shared.weight": "token_embedding.weight",
    "encoder.block.": "blocks.",
    "encoder.final_layer_norm": "norm",
    "layer.0.layer_norm": "norm1",
    "layer.1.layer_norm": "norm2",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.SelfAttention.": "attn.",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}


def converted(theirs: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """The weights of a transformers encoder under Wan's names; its second view of the embedding is dropped."""
    state = theirs.state_dict()
    del state["encoder.embed_tokens.weight"]
    for old, new in names.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return state


def prompts(tokens: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Random ids, 0 beyond each length, and their mask."""
    ids = torch.randint(1, 60, (len(lengths), tokens), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def test_keys_and_shapes_are_those_of_the_published_file() -> None:
    with torch.device("meta"):
        network = UMT5Encoder(
            vocab=256384,
            dim=4096,
            dim_attn=4096,
            dim_ffn=10240,
            num_heads=64,
            num_layers=24,
            num_buckets=32,
            shared_pos=False,
        )
    assert checkpoint_hash(network.state_dict()) == "9c8818c2cbea55eca56c7b447df170da"
    assert len(network.state_dict()) == 242
    assert not list(network.buffers())


def test_output_equals_transformers_umt5() -> None:
    theirs = randomized(UMT5EncoderModel(UMT5Config(**THEIR_TINY)))
    ours = UMT5Encoder(**TINY)
    ours.load_state_dict(converted(theirs, NAMES))
    ids, mask = prompts(300, [300, 170])  # beyond the largest distance that has a bucket of its own
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).last_hidden_state * mask[..., None]
        assert relative_error(ours(ids, mask), expected) < 2e-6


def test_one_shared_table_equals_transformers_mt5() -> None:
    theirs = randomized(MT5EncoderModel(MT5Config(**THEIR_TINY)))
    ours = UMT5Encoder(**{**TINY, "shared_pos": True})
    shared = {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding"}
    ours.load_state_dict(converted(theirs, shared | NAMES))
    ids, mask = prompts(40, [40, 11])
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).last_hidden_state * mask[..., None]
        assert relative_error(ours(ids, mask), expected) < 2e-6


def test_rows_of_padding_are_zero_for_each_sample_and_do_not_matter() -> None:
    encoder = randomized(UMT5Encoder(**TINY))
    ids, mask = prompts(16, [5, 12])
    with torch.no_grad():
        out = encoder(ids, mask)
        alone = encoder(ids[1:, :12], mask[1:, :12])
    assert out[0, 5:].abs().max() == 0
    assert out[1, 12:].abs().max() == 0
    assert (out[0, :5] != 0).any(dim=-1).all()
    assert relative_error(out[1, :12], alone[0]) < 2e-6


def test_an_empty_prompt_is_zero_and_not_nan() -> None:
    ids, mask = prompts(6, [0, 3])
    for dtype in (torch.float32, torch.bfloat16):
        out = randomized(UMT5Encoder(**TINY)).to(dtype)(ids, mask)
        assert out[0].abs().max() == 0
        assert out.isfinite().all()


def test_bfloat16_follows_float32() -> None:
    encoder = randomized(UMT5Encoder(**TINY))
    ids, mask = prompts(24, [24, 9])
    with torch.no_grad():
        expected = encoder(ids, mask)
        out = encoder.bfloat16()(ids, mask)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, expected) < 0.05


def test_near_distances_have_buckets_of_their_own_and_far_ones_share() -> None:
    from_first = relative_buckets(200, 32, torch.device("cpu"))[0]
    assert from_first[:9].tolist() == [0, *range(17, 25)]
    assert from_first[128:].unique().tolist() == [31]
    assert relative_buckets(200, 32, torch.device("cpu"))[199, :72].unique().tolist() == [15]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "dim_attn 32 does not divide into num_heads 5"),
        ({"num_buckets": 6}, "num_buckets 6 must be a multiple of 4"),
    ],
)
def test_numbers_that_cannot_work_are_rejected(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UMT5Encoder(**{**TINY, **change})


def test_the_mask_decides_and_not_the_ids() -> None:
    encoder = randomized(UMT5Encoder(**TINY))
    ids, mask = prompts(10, [6])
    other = ids + (1 - mask) * 7
    with torch.no_grad():
        assert relative_error(encoder(other, mask), encoder(ids, mask)) < 1e-6
