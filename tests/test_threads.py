"""How many threads are taken: as many as cores are free, unless the network is large or the user has said it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from omniavatar import threads as module
from omniavatar.distributed.world import World
from omniavatar.opening import open_engine
from omniavatar.threads import (
    CHOSEN_BY,
    SMALL,
    allowed_cores,
    parameters_of,
    suit_threads,
    suitable_threads,
    used_share,
)

STAT = """cpu  60 0 0 140 0 0 0 0 0 0
cpu0 {busy0} 0 0 {idle0} 0 0 0 0 0 0
cpu1 0 {busy1} 0 0 {idle1} 0 0 0 0 0
intr 1 2 3
"""


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No quota, and a user who has not said how many threads there are."""
    monkeypatch.setattr(module, "allowed_cores", lambda: float("inf"))
    for name in CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("threads", "load", "taken"),
    [(2, 0.0, 2), (2, 0.2, 2), (2, 0.5, 1), (2, 3.0, 1), (16, 0.25, 12), (16, 1.0, 1), (1, 0.0, 1)],
)
def test_small_networks_take_the_free_cores(threads: int, load: float, taken: int) -> None:
    assert suitable_threads(6_000_000, threads, load=load) == taken


def test_large_networks_take_all() -> None:
    assert suitable_threads(SMALL, 16, load=1.0) == 16


@pytest.mark.parametrize("name", CHOSEN_BY)
def test_what_the_user_says_is_done(name: str) -> None:
    assert suitable_threads(1, 16, load=1.0, ranks=4, environment={name: "16"}) == 16


@pytest.mark.parametrize("parameters", [1, SMALL])
def test_ranks_of_a_host_share_its_cores(parameters: int) -> None:
    assert suitable_threads(parameters, 16, ranks=3, load=0.0) == 5
    assert suitable_threads(parameters, 2, ranks=4, load=0.0) == 1


def test_a_quota_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "allowed_cores", lambda: 2.5)
    assert suitable_threads(SMALL, 64) == 2
    assert suitable_threads(1, 64, load=0.5) == 2
    assert suitable_threads(1, 64, load=1.0) == 1


@pytest.mark.parametrize(
    ("text", "cores"), [("250000 100000\n", 2.5), ("max 100000\n", float("inf")), ("", float("inf"))]
)
def test_quotas_of_containers(tmp_path: Path, text: str, cores: float) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(text)
    assert allowed_cores(path) == cores
    assert allowed_cores(tmp_path / "none") == float("inf")


@pytest.mark.parametrize(("ours", "share"), [({0, 1}, 0.5), ({0}, 0.25), ({1}, 0.75), ({0, 1, 2}, 0.5)], ids=str)
def test_the_load_is_what_others_do_now_on_our_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: set[int], share: float
) -> None:
    path = tmp_path / "stat"
    path.write_text(STAT.format(busy0=50, idle0=50, busy1=10, idle1=90))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: ours, raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (100.0, 0.0, 0.0), raising=False)
    later = STAT.format(busy0=60, idle0=80, busy1=40, idle1=100)
    monkeypatch.setattr(module.time, "sleep", lambda _: path.write_text(later))
    assert used_share(path) == share


@pytest.mark.parametrize("text", ["", "cpu0 zero\n", "cpu0 0 0 0 0 0 0 0 0\n"])
def test_elsewhere_it_is_the_load_of_the_last_minute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "stat"
    path.write_text(text)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 0.0, 0.0), raising=False)
    assert used_share(path) == 0.5


def test_a_load_that_is_not_known_counts_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown() -> tuple[float, float, float]:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", unknown, raising=False)
    assert used_share(tmp_path / "none") == 0.0
    monkeypatch.delattr(os, "getloadavg")
    assert used_share(tmp_path / "none") == 0.0


def threads_after(engine: Any) -> int:
    """Torch's number of threads, of 3, once it suits an engine; in a thread of its own, which leaves ours alone."""
    found = []

    def look() -> None:
        torch.set_num_threads(3)
        suit_threads(engine)
        found.append(torch.get_num_threads())

    before = torch.get_num_threads()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    return found[0]


def test_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine("tiny", device="cpu")
    assert 1_000_000 < parameters_of(engine) < SMALL
    monkeypatch.setattr(module, "used_share", lambda: 1.0)
    assert threads_after(engine) == 1
    on_gpu: Any = SimpleNamespace(models=engine.models, device=torch.device("cuda"), world=World())
    assert threads_after(on_gpu) == 3
    ranks: Any = SimpleNamespace(models=engine.models, device=torch.device("cpu"), world=World(size=2, local_size=2))
    monkeypatch.setattr(module, "used_share", lambda: pytest.fail("ranks start together"))
    assert threads_after(ranks) == 1


def test_python_programs_keep_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the command line changes what holds for the whole process."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("changed the threads of a host program"))
    monkeypatch.setattr(module, "used_share", lambda: 1.0)
    open_engine("tiny", device="cpu").load()
