"""8-bit layers: exact where the format is, and off by no more than it is elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from omniavatar.models.conversion import Conversions
from omniavatar.models.fp8 import E4M3, LARGEST, Fp8Blocks, Fp8Linear, Mode, Scaling, quantized, scale_of
from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing.tiny import DIT
from tests.models.networks import noise, randomized, relative_error

LAYERS_OF_A_BLOCK = 10
"""Query, key, value and output of two attentions, two of the feed-forward."""


def linear(inner: int = 64, outer: int = 48, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inner, outer, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("scaling", ["row", "tensor"])
def test_a_stored_number_is_off_by_a_sixteenth_at_most(scaling: Scaling) -> None:
    x = noise(50, 300, seed=1) * torch.logspace(-2, 2, 50)[:, None]
    scale = scale_of(x, scaling)
    assert scale.shape == ((50, 1) if scaling == "row" else (1, 1))
    stored = quantized(x, scale)
    assert stored.dtype == E4M3
    assert stored.float().abs().max() == LARGEST
    off = (stored.float() * scale - x).abs()
    assert bool((off <= (x.abs() / 16).maximum(scale * 2**-10) * 1.001).all())
    assert 0.02 < relative_error(stored.float() * scale, x) < 0.04


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_number_is_never_beyond_the_format(dtype: torch.dtype) -> None:
    for seed in range(200):
        x = noise(4, 16, seed=seed).to(dtype) * 1.04**seed
        assert quantized(x, scale_of(x, "row")).float().isfinite().all()


def test_zeros_stay_zero() -> None:
    assert not quantized(torch.zeros(2, 4), scale_of(torch.zeros(2, 4), "row")).float().any()
    layer = Fp8Linear.of(linear(bias=False), "compute", "row")
    assert not layer(torch.zeros(1, 3, 64)).any()


@pytest.mark.parametrize("mode", ["compute", "storage"])
@pytest.mark.parametrize("scaling", ["row", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_off_by_a_few_percent(mode: Mode, scaling: Scaling, dtype: torch.dtype, bias: bool) -> None:
    full = linear(bias=bias)
    x = noise(2, 7, 64, seed=2)
    layer: Any = Fp8Linear.of(full.to(dtype), mode, scaling)
    made = layer(x.to(dtype))
    assert made.shape == (2, 7, 48)
    assert made.dtype == dtype
    error = relative_error(made.float(), linear(bias=bias)(x))
    assert 0.01 < error < {"compute": 0.06, "storage": 0.045}[mode]


def test_rows_do_not_disturb_each_other() -> None:
    """A token a thousand times larger than the others costs them nothing with a scale for each, and much with one."""
    x = noise(1, 8, 64, seed=3)
    x[:, 0] *= 1e5
    errors = {}
    for scaling in ("row", "tensor"):
        made = Fp8Linear.of(linear(bias=False), "compute", scaling)(x)
        errors[scaling] = relative_error(made[:, 1:], linear(bias=False)(x)[:, 1:])
    assert errors["row"] < 0.06
    assert errors["tensor"] > 0.3


@pytest.mark.parametrize(("mode", "bound"), [("storage", 0.04), ("compute", 0.06)])
def test_the_error_of_a_whole_network(mode: Mode, bound: float) -> None:
    dit = randomized(WanDiT(**DIT)).requires_grad_(False)
    inputs = noise(1, DIT["in_dim"], 2, 4, 4, seed=4), torch.tensor([500.0]), noise(1, 5, DIT["text_dim"], seed=5)
    expected = dit(*inputs)
    Conversions([Fp8Blocks(mode, "row")]).convert(dit)
    error = relative_error(dit(*inputs), expected)
    assert bound / 10 < error < bound
    stored = {name for name, weight in dit.named_parameters() if weight.dtype == E4M3}
    assert len(stored) == LAYERS_OF_A_BLOCK * DIT["num_layers"]
    assert all(name.startswith("blocks.") for name in stored)
