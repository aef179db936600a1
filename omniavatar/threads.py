"""How many threads torch computes with on the CPU: as many as suit the networks and what else the machine does.

    suit_threads(engine)     # in a process of our own, such as the command line's: the number holds for all of it

All threads of a layer wait for the slowest. If another process has its core, that one comes late by a time slice of the
system, some milliseconds; a layer of a small network takes less, so a second thread can make it many times slower.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine

SMALL = 500_000_000
"""Parameters; layers of larger networks take longer than a time slice."""
CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which a user says how many threads there are; torch reads them."""
LOOK_SECONDS = 0.2
"""How long others are watched. The load average is about the last minute: it still counts what has ended, such as our
own last video, and hardly what has just begun."""
STAT, QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")


def suit_threads(engine: Engine) -> None:
    """Have torch compute with as many threads as suit an engine on the CPU; nothing changes if it is on a GPU.

    To be called once, before the engine computes anything. Ranks on one host share its cores.
    """
    if engine.device.type != "cpu":
        return
    import torch

    ranks = engine.world.local_size
    before = torch.get_num_threads()
    # Ranks start together, so each would find the cores busy with the others.
    threads = suitable_threads(parameters_of(engine), before, ranks=ranks, load=None if ranks == 1 else 0.0)
    if threads != before:
        torch.set_num_threads(threads)


def parameters_of(engine: Engine) -> int:
    """Numbers in all model files of an engine, 0 if its models come from elsewhere."""
    return sum(detection.header.num_params for detection in getattr(engine.models, "detections", ()))


def suitable_threads(
    parameters: int,
    threads: int,
    *,
    ranks: int = 1,
    load: float | None = None,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """How many of torch's `threads` to take for networks of so many parameters: 1 to `threads`.

    All if the environment says how many there are. Else no more than the process may use, nor than its share beside
    other ranks of this host; and for small networks, no more than there are cores free now.
    load: the share of all cores that is in use; None looks, which takes a moment.
    """
    if any(name in environment for name in CHOSEN_BY):
        return threads
    most = max(1, int(min(threads / ranks, allowed_cores())))
    if parameters >= SMALL or most == 1:
        return most
    free = threads * (1 - (used_share() if load is None else load))
    return min(most, max(1, round(free)))


def allowed_cores(path: Path = QUOTA) -> float:
    """The cores that a container's quota amounts to, infinite without one; torch knows of none."""
    try:
        quota, period = path.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return math.inf


def used_share(path: Path = STAT) -> float:
    """The share of the machine's cores that is in use, above 1 if processes wait; 0 if unknown.

    Looks for a moment, in which this process does nothing; where that cannot be seen, the load of the last minute.
    """
    before = times_of_cores(path)
    time.sleep(LOOK_SECONDS if before else 0)
    after = times_of_cores(path)
    idle, total = (sum(after[core][index] - before[core][index] for core in before.keys() & after) for index in (0, 1))
    if total > 0:
        return 1 - idle / total
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):  # AttributeError: Windows
        return 0.0


def times_of_cores(path: Path = STAT) -> dict[int, tuple[int, int]]:
    """How long each core that we may use has been idle, and how long it has been there, in ticks; empty if unknown."""
    ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    times = {}
    try:
        for line in path.read_text().splitlines():
            name, *values = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and (ours is None or int(name[3:]) in ours):
                ticks = [int(value) for value in values[:8]]  # what follows is counted in them already
                times[int(name[3:])] = (sum(ticks[3:5]), sum(ticks))  # idle, and idle with a disk at work
    except (OSError, ValueError):
        return {}
    return times
