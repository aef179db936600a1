"""Structural similarity of pictures."""

from __future__ import annotations

import numpy as np


def ssim_map(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Structural similarity (h w) of two pictures (h w) in 0..255: Gaussian windows of sigma 1.5 (Wang et al. 2004)."""

    def mean(values: np.ndarray) -> np.ndarray:
        return blurred(values, 1.5)

    a, b = mean(first), mean(second)
    variance = mean(first * first) - a * a + mean(second * second) - b * b
    covariance = mean(first * second) - a * b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    result: np.ndarray = (2 * a * b + c1) * (2 * covariance + c2) / ((a * a + b * b + c1) * (variance + c2))
    return result


def luma(picture: np.ndarray) -> np.ndarray:
    """Brightness (h w) of a picture (h w 3), of its range (ITU-R BT.601)."""
    brightness: np.ndarray = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    return brightness


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of a floating-point picture (h w) or (h w c), edges repeated."""
    reach = max(1, round(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(0, 0)] * picture.ndim
        pad[axis] = (reach, reach)
        padded = np.pad(picture, pad, mode="edge")
        size = picture.shape[axis]
        picture = np.zeros_like(picture)
        for start, weight in enumerate(kernel):
            picture += weight * (padded[start : start + size] if axis == 0 else padded[:, start : start + size])
    return picture
