"""One rank of the checks: RANK, WORLD_SIZE and MASTER_* in the environment, report folder and group as arguments.

python -m tests.distributed.worker FOLDER GROUP
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

import torch

from omniavatar.distributed.world import World, joined, place
from tests.distributed.checks import CHECKS

TIMEOUT = 20.0
"""Seconds after which ranks that wait for each other give up."""


def main(folder: Path, group: str) -> None:
    """Run all checks of a group in order, and report after each.

    A failed assertion is about something that all ranks have finished; after any other exception they are no longer in
    step, nothing that followed would mean anything, and the run ends.
    """
    torch.set_num_threads(1)
    world = place()
    report: dict[str, dict[str, object]] = {}
    with joined(world, torch.device("cpu"), TIMEOUT):
        for name, check in CHECKS.items():
            if group not in check.groups:
                continue
            begin = time.perf_counter()
            try:
                report[name] = {"error": check.run(world)}
            except Exception as error:
                report[name] = {"failure": traceback.format_exc()}
                if not isinstance(error, AssertionError):
                    raise
            finally:
                report[name]["seconds"] = round(time.perf_counter() - begin, 2)
                save(report, folder, world)


def save(report: dict[str, dict[str, object]], folder: Path, world: World) -> None:
    """The report of this rank so far."""
    (folder / f"rank{world.rank}.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
