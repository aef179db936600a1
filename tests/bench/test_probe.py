"""Times of hooks go to the innermost unit."""

from __future__ import annotations

import time
from collections.abc import Generator

import pytest
from torch import Tensor

from omniavatar.bench.probe import ENGINE
from omniavatar.engine.engine import Engine
from omniavatar.engine.scopes import Forward
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from tests.bench.scenes import contender

NAP = 0.004


class Sleeps(PipelineUnit):
    """Wastes time before every block, around all of them, and once in the beginning."""

    name = "sleeps"

    @hookimpl
    def setup(self, engine: Engine) -> None:
        time.sleep(NAP)

    @hookimpl
    def before_block(self) -> None:
        time.sleep(NAP)

    @hookimpl(wrapper=True)
    def run_blocks(self, forward: Forward) -> Generator[None, Tensor, Tensor]:
        time.sleep(NAP)
        result = yield
        time.sleep(NAP)
        return result


def test_hooks_inside_hooks_count_once() -> None:
    made = contender(Sleeps(), frames=9)
    times = made.probe.hooks
    with times.counting(made.engine):
        made.engine.set_up()
    assert times.seconds["sleeps", "setup"] >= NAP
    times.seconds.clear()
    started = time.perf_counter()
    with times.counting(made.engine):
        made.engine.generate(made.requests[1])
    took = time.perf_counter() - started
    calls, blocks = 2, 8
    assert times.seconds["sleeps", "before_block"] >= blocks * NAP
    assert times.seconds["sleeps", "run_blocks"] >= 2 * calls * NAP
    assert times.seconds["transformer", "run_blocks"] < blocks * NAP
    assert took / 2 < sum(times.seconds.values()) <= took


def test_nothing_stays_around_the_hooks() -> None:
    made = contender(Sleeps(), frames=9)
    with pytest.raises(ZeroDivisionError), made.probe.hooks.counting(made.engine):
        raise ZeroDivisionError
    made.engine.generate(made.requests[1])
    assert set(made.probe.hooks.seconds) <= {ENGINE}


def test_blocks_steps_and_windows_are_those_of_the_last_video() -> None:
    made = contender(frames=17)
    for _ in range(2):
        made.engine.generate(made.requests[1])
    timed = made.probe.timed
    assert (len(timed.windows), len(timed.steps)) == (3, 6)
    assert (timed.blocks, timed.blocks_run) == (24, 24)
    assert all(0 < step < sum(timed.windows) for step in timed.steps)


def test_pictures_are_kept_when_asked_for() -> None:
    made = contender(frames=17)
    made.engine.generate(made.requests[1])
    assert made.probe.made().frames is None
    with made.probe.keeping():
        made.engine.generate(made.requests[1])
    kept = made.probe.made()
    assert kept.frames is not None
    assert kept.frames.shape == (17, 16, 16, 3)
    assert [tuple(part.shape) for part in kept.latents] == [(1, 4, 3, 2, 2)] * 3
    assert (kept.borders, kept.size, kept.silence) == ((9, 13), (16, 16), 0)
    assert made.probe.made().latents == []
