"""Real ranks: one group of processes for each world size runs all checks of `tests.distributed.checks`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.checks import RANKS

ROOT = Path(__file__).parents[2]
WORST = pytest.StashKey[dict[tuple[str, str], float]]()

Report = dict[str, dict[str, Any]]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def started(program: Sequence[str], ranks: int, folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A Python program, "-m MODULE" or a file with its arguments, as every rank of a world; killed at the end.

    What each complains about goes to a file in the folder.
    """
    place = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "PYTHONPATH": ROOT}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in place.items()}}
    processes = []
    try:
        for rank in range(ranks):
            with (folder / f"rank{rank}.err").open("w") as complaints:
                command = [sys.executable, *program]
                mine = {**environment, "RANK": str(rank)}
                processes.append(subprocess.Popen(command, cwd=ROOT, env=mine, stderr=complaints))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_program(program: Sequence[str], ranks: int, folder: Path, seconds: float = 60) -> None:
    """Run a program as every rank of a world; all must end well in this time."""
    with started(program, ranks, folder) as processes:
        codes = [process.wait(seconds) for process in processes]
    assert codes == [0] * ranks, "".join(path.read_text() for path in folder.glob("*.err"))


def run_ranks(group: str, folder: Path) -> list[Report]:
    """What every rank reports of a group of checks."""
    ranks = RANKS[group]
    with started(["-m", "tests.distributed.worker", str(folder), group], ranks, folder) as processes:
        for process in processes:
            process.wait()
    return [read_report(folder, rank) for rank in range(ranks)]


def read_report(folder: Path, rank: int) -> Report:
    """What a rank reported; it must have got as far as that."""
    path = folder / f"rank{rank}.json"
    assert path.exists(), (folder / f"rank{rank}.err").read_text()
    report: Report = json.loads(path.read_text())
    return report


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Report]]:
    """`reports("four")` is what the ranks found in this group of checks, run once."""
    return cache(lambda group: run_ranks(group, tmp_path_factory.mktemp(group)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how far several ranks were from one, at worst."""
    errors = config.stash.get(WORST, {})
    if errors:
        (group, name), error = max(errors.items(), key=lambda item: item[1])
        terminalreporter.write_line(
            f"several ranks against one: {len(errors)} checks, worst relative error {error:.1e} "
            f"({name}, {RANKS[group]} ranks)"
        )
