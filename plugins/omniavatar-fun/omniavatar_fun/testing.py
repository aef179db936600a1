"""Tiny Fun networks for tests, beside those of `omniavatar_i2v.testing`."""

from __future__ import annotations

from typing import Any

from omniavatar_i2v.testing import IMAGE_DIT

from omniavatar.testing.tiny import DIT

WIDTH = DIT["dim"]
CONTROL_DIT: dict[str, Any] = {**IMAGE_DIT, "in_dim": 48}
"""As Fun Control of Wan 2.1: control, and a picture without mask, beside the latents."""
CONTROL_DIT_22: dict[str, Any] = {**DIT, "in_dim": 52}
"""As Fun Control of Wan 2.2: with mask, without image tokens."""
CAMERA_DIT: dict[str, Any] = {**IMAGE_DIT, "in_dim": 32}
CAMERA_DIT_22: dict[str, Any] = {**DIT, "in_dim": 36}
REFERENCE: dict[str, Any] = {"in_dim": 16, "dim": WIDTH, "patch_size": DIT["patch_size"]}
CAMERA: dict[str, Any] = {"in_dim": 24, "dim": WIDTH, "num_blocks": 1}
