"""Real ranks: one group of processes for each world size runs all checks of `tests.distributed.checks`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WORST = pytest.StashKey[dict[tuple[int, str], float]]()

Report = dict[str, dict[str, Any]]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def start_rank(rank: int, ranks: int, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """One process of `tests.distributed.worker`; its complaints go to a file."""
    place = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    with (folder / f"rank{rank}.err").open("w") as complaints:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.worker", str(folder)],
            cwd=ROOT,
            env={**os.environ, **{name: str(value) for name, value in place.items()}},
            stderr=complaints,
        )


def run_ranks(ranks: int, folder: Path) -> list[Report]:
    """The report of every rank of a world of this size."""
    port = free_port()
    processes = [start_rank(rank, ranks, port, folder) for rank in range(ranks)]
    try:
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            process.kill()
    return [read_report(folder, rank) for rank in range(ranks)]


def read_report(folder: Path, rank: int) -> Report:
    """What a rank reported; it must have got as far as that."""
    path = folder / f"rank{rank}.json"
    assert path.exists(), (folder / f"rank{rank}.err").read_text()
    report: Report = json.loads(path.read_text())
    return report


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Report]]:
    """`reports(2)` is what the ranks of a world of 2 found, run once."""
    return cache(lambda ranks: run_ranks(ranks, tmp_path_factory.mktemp(f"world{ranks}")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how far several ranks were from one, at worst."""
    errors = config.stash.get(WORST, {})
    if errors:
        (ranks, name), error = max(errors.items(), key=lambda item: item[1])
        terminalreporter.write_line(
            f"several ranks against one: {len(errors)} checks, worst relative error {error:.1e} ({name}, {ranks} ranks)"
        )
