"""The outcome of all pairs and presets, found by two processes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.compatibility.cases import Pair, catalog, pairs
from tests.compatibility.outcomes import BROKEN, WORKS, Outcome
from tests.compatibility.studio import write_files
from tests.distributed.conftest import started

RANKS = 2


@dataclass(frozen=True)
class Table:
    """What became of every two units, and of every preset."""

    pairs: dict[Pair, Outcome]
    presets: dict[str, Outcome]

    @property
    def broken(self) -> list[str]:
        """What neither works nor is refused for a reason, and presets that do not work; one text each."""
        pairs = [f"{' + '.join(pair)}: {found.reason}" for pair, found in self.pairs.items() if found.verdict == BROKEN]
        presets = [f"{name}: {found.reason}" for name, found in self.presets.items() if found.verdict != WORKS]
        return pairs + presets


def make_table(folder: Path) -> Table:
    """Try everything; `folder` takes the files."""
    write_files(folder / "files")
    with started(["-m", "tests.compatibility.worker", str(folder)], RANKS, folder) as processes:
        for process in processes:
            process.wait()
    reports = [read_report(folder, rank) for rank in range(RANKS)]
    return Table(
        {pair: worst(" ".join(pair), reports) for pair in pairs()},
        {name: worst(name, reports) for name in catalog().presets},
    )


def read_report(folder: Path, rank: int) -> dict[str, Outcome]:
    """What a process reported; it must have got as far as that."""
    path = folder / f"rank{rank}.json"
    if not path.exists():
        raise RuntimeError((folder / f"rank{rank}.err").read_text())
    return {name: Outcome(**outcome) for name, outcome in json.loads(path.read_text()).items()}


def worst(name: str, reports: list[dict[str, Outcome]]) -> Outcome:
    """The outcome of one thing that one process or both have tried."""
    found = [report[name] for report in reports if name in report]
    return next((outcome for outcome in found if outcome.verdict == BROKEN), found[0])
