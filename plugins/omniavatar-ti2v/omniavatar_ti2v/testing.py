"""Small numbers for tests: a transformer and a VAE of 48 channels, beside the tiny networks of `omniavatar.testing`."""

from __future__ import annotations

from typing import Any

from omniavatar.testing import tiny

DIT: dict[str, Any] = {**tiny.DIT, "in_dim": 48, "out_dim": 48}
VAE38: dict[str, Any] = {
    "dim": 4,
    "dec_dim": 8,
    "z_dim": 48,
    "dim_mult": (1, 2, 4, 4),
    "num_res_blocks": 1,
    "temporal_downsample": (False, True, True),
    "patch": 2,
    "latent_mean": (0.0,) * 48,
    "latent_std": (1.0,) * 48,
}
