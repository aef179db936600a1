"""A sound that a program has in memory, with the rate that says how fast it plays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Samples:
    """Sound in memory: `samples` (n, channels) float32 in [-1, 1] at `rate` samples a second."""

    samples: np.ndarray
    rate: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.rate
