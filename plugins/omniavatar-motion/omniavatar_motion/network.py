"""The motion controller of Wan2.1-1.3b-speedcontrol: from a bucket of speed to a change of the time modulation.

controller = MotionController(freq_dim=256, dim=1536)
t_mod = t_mod + controller(torch.tensor([50.0]))            # (b 6 d)
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from omniavatar.sdk import sinusoid

BUCKET_SCALE = 10
"""Buckets 0 to 100 go through the sinusoid on the scale of the time steps, 0 to 1000."""


class MotionController(nn.Module):
    """A sinusoid of the bucket through three linear layers. Keys as in the published file."""

    def __init__(self, *, freq_dim: int, dim: int) -> None:
        super().__init__()
        self.freq_dim, self.dim = freq_dim, dim
        self.linear = nn.Sequential(
            nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 6 * dim)
        )

    def forward(self, bucket: Tensor) -> Tensor:
        """Buckets (b), 0 slow to 100 fast -> what is added to the modulation of the blocks (b 6 d)."""
        embedded = sinusoid(bucket * BUCKET_SCALE, self.freq_dim)
        change: Tensor = self.linear(embedded.to(next(self.parameters()).dtype))
        return rearrange(change, "b (m d) -> b m d", m=6)
