"""Normalized Attention Guidance (Chen et al. 2025, arXiv:2505.21179): guidance inside a cross-attention.

    slot.cross.wrap_at(partial(guided, scale=11.0, tau=2.5, alpha=0.25, norm=1))

Letters in shapes: b batch, s tokens, h heads, n text tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from omniavatar.models.attention import Address, Attention

TEXT = "nag.text"
"""The condition that holds the text to lead away from (b n d), as the blocks take it; without it nothing is done."""
ROWS = "nag.rows"
"""The condition that says which samples are guided (b) bool; without it all are."""
Norm = Literal[1, 2]


def normalized(positive: Tensor, negative: Tensor, *, scale: float, tau: float, alpha: float, norm: Norm) -> Tensor:
    """What heads (b s h d) make of a text, led away from what they make of another one.

    g = scale z+ - (scale - 1) z-, made as short as tau |z+| if it is longer, and mixed: alpha g + (1 - alpha) z+. Norms
    are over all heads of a token: 1 in all programs for Wan, 2 in the paper.
    """
    guided = scale * positive - (scale - 1) * negative
    allowed, size = (
        torch.linalg.vector_norm(
            heads, norm, dim=(-2, -1), keepdim=True, dtype=torch.promote_types(heads.dtype, torch.float32)
        )
        for heads in (positive, guided)
    )
    shrunk = (tau * allowed / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1).to(guided.dtype)
    return torch.lerp(positive, guided * shrunk, alpha)


def guided(inner: Attention, at: Address, *, scale: float, tau: float, alpha: float, norm: Norm) -> Attention:
    """What a cross-attention to the text is with this guidance; others stay as they are."""
    text = at.inputs.conditions.get(TEXT) if at.condition == "text" else None
    if text is None:
        return inner

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (part.expand(len(q), -1, -1, -1) for part in at.layer.keys_values(text))
        positive, negative = inner(q, k, v), inner(q, keys, values)
        made = normalized(positive, negative, scale=scale, tau=tau, alpha=alpha, norm=norm)
        rows = at.inputs.conditions.get(ROWS)
        return made if rows is None else torch.where(rows[:, None, None, None], made, positive)

    return attend
