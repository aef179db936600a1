"""How many threads a small network computes with on a busy CPU.

    threads = suitable_threads(parameters, torch.get_num_threads())     # in the process of the command line

All threads of a layer wait for the slowest. If another process has its core, that one comes late by a time slice of the
system, some milliseconds; a layer of a small network takes less, so a second thread can make it many times slower.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SMALL = 500_000_000
"""Parameters; layers of larger networks take longer than a time slice."""
CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which a user says how many threads there are."""


def suitable_threads(
    parameters: int, threads: int, *, load: float | None = None, environment: Mapping[str, str] = os.environ
) -> int:
    """How many of torch's `threads` to take for networks of so many parameters: 1 to `threads`.

    All for large networks, and if the environment says how many there are; else as many as there are cores free now.
    load: the share of all cores that is in use; default: that of the last minute.
    """
    if parameters >= SMALL or any(name in environment for name in CHOSEN_BY):
        return threads
    free = threads * (1 - (used_share() if load is None else load))
    return min(threads, max(1, round(free)))


def used_share() -> float:
    """The share of the machine's cores that was in use in the last minute, above 1 if processes wait; 0 if unknown."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):  # AttributeError: Windows
        return 0.0
