"""How many threads are taken: as many as cores are free, unless the network is large or the user has said it."""

from __future__ import annotations

import os

import pytest

from omniavatar.threads import SMALL, suitable_threads, used_share


@pytest.mark.parametrize(
    ("threads", "load", "taken"),
    [(2, 0.0, 2), (2, 0.2, 2), (2, 0.5, 1), (2, 3.0, 1), (16, 0.25, 12), (16, 1.0, 1), (1, 0.0, 1)],
)
def test_small_networks_take_the_free_cores(threads: int, load: float, taken: int) -> None:
    assert suitable_threads(6_000_000, threads, load=load, environment={}) == taken


def test_large_networks_take_all() -> None:
    assert suitable_threads(SMALL, 16, load=1.0, environment={}) == 16


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_user_says_is_done(name: str) -> None:
    assert suitable_threads(1, 16, load=1.0, environment={name: "16"}) == 16


def test_the_load_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 0.0, 0.0))
    assert used_share() == 0.5
    assert suitable_threads(1, 4, environment={}) == 2


def test_a_load_that_is_not_known_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> tuple[float, float, float]:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", unknown)
    assert suitable_threads(1, 4, environment={}) == 4
    monkeypatch.delattr(os, "getloadavg")
    assert suitable_threads(1, 4, environment={}) == 4
