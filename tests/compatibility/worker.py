"""One of the two ranks: what needs ranks together with the other one, of the rest every second plan.

python -m tests.compatibility.worker FOLDER, with RANK, WORLD_SIZE and MASTER_* in the environment.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from omniavatar.distributed.world import World, joined, place
from tests.compatibility.cases import Pair, cases, catalog, needs_ranks, pairs, preset_case
from tests.compatibility.outcomes import Outcome, outcome, outcome_of
from tests.compatibility.studio import Studio, reading_once

TIMEOUT = 60.0
"""Seconds after which a rank gives up waiting for the other."""


def main(folder: Path) -> None:
    """Report the outcome of every pair and preset that is this rank's part."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    world = place()
    with reading_once(folder / "files"):
        found = outcomes(folder, world)
    (folder / f"rank{world.rank}.json").write_text(json.dumps({key: asdict(value) for key, value in found.items()}))


def outcomes(folder: Path, world: World) -> dict[str, Outcome]:
    """By the names of the units, or of the preset."""
    files, output = folder / "files", folder / f"rank{world.rank}"
    output.mkdir()
    with joined(world, torch.device("cpu"), TIMEOUT):
        studio = Studio(files, output, world)
        found = {" ".join(pair): outcome_of(pair, studio) for pair in pairs() if needs_ranks(pair)}
    studio = Studio(files, output)
    found |= {" ".join(pair): outcome_of(pair, studio) for pair in share(world)}
    for name in list(catalog().presets)[world.rank :: world.size]:
        found[name] = outcome(lambda name=name: studio.make(preset_case(name)))  # type: ignore[misc]
    return found


def share(world: World) -> list[Pair]:
    """The pairs that this rank tries alone; those of one plan stay together, since they share videos."""
    plans: dict[tuple[str, ...], list[Pair]] = {}
    for pair in pairs():
        if not needs_ranks(pair):
            plans.setdefault(next(cases(pair)).units, []).append(pair)
    return [pair for of_plan in list(plans.values())[world.rank :: world.size] for pair in of_plan]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
