"""How near one video is to another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from omniavatar.bench.probe import Made
from omniavatar.bench.record import Quality, Spread
from omniavatar.media.similarity import luma, ssim_map


def mean_square(seen: np.ndarray, true: np.ndarray) -> float:
    """Mean square difference of two videos (t h w 3) uint8, frame by frame to spare memory."""
    squares = [np.square(a.astype(np.float32) - b).mean() for a, b in zip(seen, true, strict=True)]
    return float(np.mean(squares))


def psnr(seen: np.ndarray, true: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of videos (t h w 3) uint8: 10 log10(255^2 / mean square); inf if equal."""
    error = mean_square(seen, true)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(seen: np.ndarray, true: np.ndarray) -> float:
    """Structural similarity of the brightness (Wang et al. 2004), mean over the frames of videos (t h w 3) uint8."""
    maps = [ssim_map(luma(a.astype(np.float32)), luma(b.astype(np.float32))) for a, b in zip(seen, true, strict=True)]
    return float(np.mean([values.mean() for values in maps]))


def latent_error(seen: Sequence[Tensor], true: Sequence[Tensor]) -> float | None:
    """|x - y| / |y| of the latents of all windows; None if their shapes differ."""
    if [part.shape for part in seen] != [part.shape for part in true]:
        return None
    difference, norm = (
        torch.cat([part.flatten().double() for part in parts]).norm()
        for parts in ([a - b for a, b in zip(seen, true, strict=True)], true)
    )
    return float(difference / norm) if norm > 0 else float(difference)


@dataclass
class Likenesses:
    """The videos of one combination against those of another, seed by seed."""

    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    latent_error: list[float | None] = field(default_factory=list)

    def add(self, seen: Made, true: Made) -> None:
        """A video of the same seed of both; nothing where their pictures do not match in number and size."""
        if seen.frames is None or true.frames is None or seen.frames.shape != true.frames.shape:
            return
        self.psnr.append(psnr(seen.frames, true.frames))
        self.ssim.append(ssim(seen.frames, true.frames))
        self.latent_error.append(latent_error(seen.latents, true.latents))

    def quality(self) -> Quality | None:
        """None without a video. A seed whose pictures are equal has no PSNR and does not count in its spread."""
        if not self.ssim:
            return None
        finite = [value for value in self.psnr if value != float("inf")]
        errors = [value for value in self.latent_error if value is not None and math.isfinite(value)]
        return Quality(
            identical=not finite,
            psnr_db=Spread.of(finite) if finite else None,
            ssim=Spread.of(self.ssim),
            latent_error=Spread.of(errors) if len(errors) == len(self.ssim) else None,
        )
