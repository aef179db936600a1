"""Three-axis rotary position embedding (Su et al. 2021, arXiv:2104.09864) over frame, row and column.

    table = rope_table(grid_positions((27, 25, 45)), head_dim=128)   # (30375, 64, 2)
    q = apply_rope(q, table)                                         # (b s h d) -> (b s h d)

Positions may be any integers, negative ones included. Rotation uses real arithmetic on adjacent pairs, which a compiler
can fuse with its neighbours.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def grid_positions(
    grid: tuple[int, int, int], device: torch.device | str | None = None, first_frame: int = 0
) -> Tensor:
    """(frame, row, column) of every token of a grid (f, h, w), frames outermost: (f*h*w, 3) int64."""
    frames, rows, columns = (torch.arange(size, device=device) for size in grid)
    return torch.cartesian_prod(frames + first_frame, rows, columns)


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How many channels of a head belong to frame, row and column: d - 2(d//3), d//3, d//3, each an even number."""
    third = head_dim // 3
    dims = (head_dim - 2 * third, third, third)
    if third < 2 or any(dim % 2 for dim in dims):
        raise ValueError(
            f"head_dim {head_dim} splits into {dims} for frame, row and column; each must be even and >= 2"
        )
    return dims


def rope_table(positions: Tensor, head_dim: int, theta: float = 10000.0) -> Tensor:
    """Cosine and sine of every rotation angle: positions (s 3) -> (s, head_dim/2, 2) float32.

    Pair j of an axis with d channels turns by position * theta^(-2j/d), computed in float64.
    """
    angles = []
    for position, dim in zip(positions.double().unbind(-1), axis_dims(head_dim), strict=True):
        exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
        angles.append(position[..., None] * theta**-exponents)
    angle = torch.cat(angles, dim=-1)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (2j, 2j+1) of x (b s h d) by table (s, d/2, 2) in float32; keeps the dtype of x."""
    real, imaginary = rearrange(x.float(), "b s h (j pair) -> pair b s h j", pair=2)
    cos, sin = table.unsqueeze(-3).unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
