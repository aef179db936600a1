"""Starting ranks on this host with torch's elastic agent, and saying which of them failed first."""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

LOST = 4
"""Exit code of a rank that stops because another one has stopped."""
POLL_SECONDS = 0.1


def launch(ranks: int, arguments: Sequence[str]) -> tuple[int, str]:
    """Run `omni ARGUMENTS` in `ranks` processes until all have ended; if one fails the others are stopped.

    Returns the exit code, and a message where the failed rank could not speak for itself because it was killed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=POLL_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "omniavatar", *arguments)
    except ChildFailedError as error:
        return first_failure(error.failures)
    return 0, ""


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, str]:
    """The exit code of the rank that failed by itself, and what to say about it if a signal killed it."""
    stopped = (LOST, -signal.SIGTERM, -signal.SIGINT)
    by_itself = [failure for failure in failures.values() if failure.exitcode not in stopped]
    failure = min(by_itself or failures.values(), key=lambda failure: failure.timestamp)
    if failure.exitcode >= 0:
        return failure.exitcode, ""
    name = signal.Signals(-failure.exitcode).name
    return 128 - failure.exitcode, f"rank {failure.local_rank} was killed by {name}; was there enough memory?"
