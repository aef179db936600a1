"""PSNR, SSIM and latent errors of pictures for which they are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from omniavatar.bench.measures import Likenesses, latent_error, psnr, ssim
from omniavatar.bench.probe import Made


def frames(seed: int = 0, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 220, (count, 24, 32, 3), dtype=np.uint8)


def made(pictures: np.ndarray | None, latents: float = 1.0, shape: tuple[int, ...] = (1, 4, 2, 3, 3)) -> Made:
    return Made(pictures, [torch.full(shape, latents)], (), 0.0, (24, 32))


def test_psnr_of_a_known_error() -> None:
    one_off = frames() + np.uint8(1)
    assert psnr(one_off, frames()) == pytest.approx(20 * math.log10(255))
    half = one_off.copy()
    half[..., 16:, :] = frames()[..., 16:, :]
    assert psnr(half, frames()) == pytest.approx(20 * math.log10(255) + 10 * math.log10(2))
    assert psnr(frames(), frames()) == math.inf


def test_ssim_is_one_for_equals_and_known_for_flat_pictures() -> None:
    assert ssim(frames(), frames()) == pytest.approx(1)
    assert ssim(frames(1), frames()) < 0.3
    dark, light = (np.full((1, 24, 24, 3), value, np.uint8) for value in (50, 100))
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, light) == pytest.approx((2 * 50 * 100 + c1) / (50**2 + 100**2 + c1), rel=1e-4)


def test_latent_errors_are_relative() -> None:
    true = [torch.full((1, 2), 3.0), torch.full((1, 2), 4.0)]
    assert latent_error([part * 1.1 for part in true], true) == pytest.approx(0.1)
    assert latent_error(true, true) == 0
    assert latent_error(true[:1], true) is None
    assert latent_error([part.T for part in true], true) is None


def test_seeds_are_put_together() -> None:
    likenesses = Likenesses()
    likenesses.add(made(frames(), 1.1), made(frames()))
    likenesses.add(made(frames() + np.uint8(1), 1.3), made(frames()))
    quality = likenesses.quality()
    assert quality is not None
    assert quality.psnr_db is not None
    assert quality.latent_error is not None
    assert (quality.identical, len(quality.psnr_db.values), len(quality.ssim.values)) == (False, 1, 2)
    assert quality.latent_error.median == pytest.approx(0.2)


def test_what_cannot_be_compared_is_left_out() -> None:
    likenesses = Likenesses()
    likenesses.add(made(frames()[:2]), made(frames()))
    likenesses.add(made(None), made(frames()))
    assert likenesses.quality() is None
    likenesses.add(made(frames(), math.nan), made(frames()))
    quality = likenesses.quality()
    assert quality is not None
    assert (quality.identical, quality.psnr_db, quality.latent_error) == (True, None, None)
