from __future__ import annotations

import pytest
import torch
from einops import rearrange

from omniavatar.models.rope import apply_rope, grid_positions, rope_table
from tests.models.networks import noise


def test_positions_run_over_columns_then_rows_then_frames() -> None:
    positions = grid_positions((2, 2, 3))
    assert positions.tolist() == [[f, r, c] for f in range(2) for r in range(2) for c in range(3)]
    assert positions.dtype == torch.int64


def test_a_grid_of_one_token_has_one_position() -> None:
    assert grid_positions((1, 1, 1)).tolist() == [[0, 0, 0]]


def test_channels_of_a_head_belong_to_frame_row_and_column() -> None:
    origin = rope_table(torch.zeros(1, 3, dtype=torch.int64), 128)[0]
    for axis, channels in enumerate([range(22), range(22, 43), range(43, 64)]):
        position = torch.zeros(1, 3, dtype=torch.int64)
        position[0, axis] = 5
        moved = (rope_table(position, 128)[0] != origin).any(dim=-1)
        assert moved.nonzero().flatten().tolist() == list(channels)


def test_rotation_equals_complex_multiplication() -> None:
    x, positions = noise(2, 24, 3, 12), grid_positions((2, 3, 4))
    frequencies = 10000.0 ** -(torch.arange(0, 4, 2, dtype=torch.float64) / 4)
    angles = rearrange(positions[:, :, None] * frequencies, "s a j -> s 1 (a j)")
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    torch.testing.assert_close(apply_rope(x, rope_table(positions, 12)).double(), expected, atol=1e-6, rtol=0)


def test_products_depend_on_position_differences_only() -> None:
    q, k = noise(1, 1, 1, 24, seed=1), noise(1, 1, 1, 24, seed=2)

    def product(query_at: list[int], key_at: list[int]) -> float:
        tables = (rope_table(torch.tensor([at]), 24) for at in (query_at, key_at))
        return float((apply_rope(q, next(tables)) * apply_rope(k, next(tables))).sum())

    shifted = product([-30, 2, 7], [-29, 5, 4])
    assert product([1, 2, 3], [2, 5, 0]) == pytest.approx(shifted, abs=1e-5)
    assert product([1, 2, 3], [2, 5, 1]) != pytest.approx(shifted, abs=1e-3)


def test_far_positions_keep_their_precision() -> None:
    position = 123457
    cos, sin = rope_table(torch.tensor([[position, 0, 0]]), 128)[0, 1]
    angle = torch.tensor(position * 10000.0 ** (-2 / 44), dtype=torch.float64)
    assert float(cos) == pytest.approx(float(angle.cos()), abs=1e-7)
    assert float(sin) == pytest.approx(float(angle.sin()), abs=1e-7)


def test_bfloat16_stays_bfloat16_and_rotates_in_float32() -> None:
    x, table = noise(1, 8, 2, 12).bfloat16(), rope_table(grid_positions((2, 2, 2)), 12)
    turned = apply_rope(x, table)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, apply_rope(x.float(), table).bfloat16())


@pytest.mark.parametrize("head_dim", [2, 4, 16, 22, 31])
def test_a_head_that_does_not_split_into_pairs_is_rejected(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"head_dim {head_dim} splits into"):
        rope_table(grid_positions((1, 1, 1)), head_dim)
