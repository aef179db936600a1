"""How long a block takes: few calls while its time is stable, more and a wide spread where it is not."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch

from omniavatar.estimate import timing as module
from omniavatar.estimate.rehearsal import MOST_TIMES, is_worth_repeating
from omniavatar.estimate.timing import (
    FEWEST_CALLS,
    LEAST_SECONDS,
    MOST_SECONDS,
    SLICE_SECONDS,
    Calls,
    Clock,
    Lap,
    Seconds,
    time_of,
)

CPU = torch.device("cpu")


class FakeTime:
    """A machine whose time passes when it is told so; `worked` is the part of it in which the process had a core."""

    def __init__(self) -> None:
        self.now = 0.0
        self.worked = 0.0

    def passes(self, seconds: float, worked: float | None = None) -> None:
        self.now += seconds
        self.worked += seconds if worked is None else worked


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(module.time, "perf_counter", lambda: fake.now)
    monkeypatch.setattr(module.time, "thread_time", lambda: fake.worked)
    return fake


def call(clock: Clock, calls: Calls, machine: FakeTime, seconds: float, worked: float | None = None) -> bool:
    """Call a block; whether that was measured."""
    is_measured = clock.measures(calls)
    if is_measured:
        with clock.measuring(calls):
            machine.passes(seconds, worked)
    return is_measured


def measured(machine: FakeTime, times: Iterator[float], worked: Callable[[float], float] = lambda time: time) -> Calls:
    """Calls of a block in a run of 10,000, measured while they are due."""
    clock, calls = Clock(CPU), Calls()
    for seconds in itertools.islice(times, 10_000):
        call(clock, calls, machine, seconds, worked(seconds))
    return calls


def count(calls: Calls) -> int:
    """Warm calls that were measured."""
    return sum(each.calls for each in calls.slices)


def test_a_stable_time_is_known_after_few_calls(machine: FakeTime) -> None:
    calls = measured(machine, itertools.repeat(0.01))
    assert LEAST_SECONDS <= machine.now <= LEAST_SECONDS + 0.05
    assert calls.time.typical == pytest.approx(0.01)
    assert calls.time.is_stable


def test_long_calls_are_measured_a_few_times(machine: FakeTime) -> None:
    calls = measured(machine, itertools.repeat(60.0))
    assert count(calls) == FEWEST_CALLS - 1
    assert calls.time == Seconds(60.0, 60.0, 60.0)


def test_a_noisy_time_takes_more_calls_and_has_a_wide_spread(machine: FakeTime) -> None:
    """Other work comes and goes for half a second at a time."""
    stable = count(measured(machine, itertools.repeat(0.01)))
    noise = random.Random(0)
    phases = (itertools.repeat(noise.choice([0.01, 0.03]), 20) for _ in itertools.count())
    calls = measured(machine, itertools.chain.from_iterable(phases), lambda _: 0.01)
    assert sum(each.seconds for each in calls.slices) == pytest.approx(MOST_SECONDS, abs=0.1)
    assert count(calls) > stable
    assert calls.time.low == pytest.approx(0.01)
    assert calls.time.high > 0.025
    assert calls.time.low < calls.time.typical < calls.time.high


def test_what_is_expected_is_the_mean(machine: FakeTime) -> None:
    """A run is the sum of its calls: that one of four takes ten times as long is not an exception to be left out."""
    calls = measured(machine, itertools.cycle([0.002, 0.002, 0.002, 0.02]))
    assert calls.time.typical == pytest.approx(0.0065, rel=0.01)


def test_evenly_shared_cores_are_seen_too(machine: FakeTime) -> None:
    """Each call takes equally long, but without the other work it would take less."""
    calls = measured(machine, itertools.repeat(0.03), lambda time: time / 3)
    assert calls.time.low == pytest.approx(0.01)
    assert (calls.time.typical, calls.time.high) == pytest.approx((0.03, 0.03))
    assert not calls.time.is_stable


def test_the_first_call_is_not_warm(machine: FakeTime) -> None:
    calls = measured(machine, itertools.chain([10.0], itertools.repeat(0.5)))
    assert calls.time == Seconds(0.5, 0.5, 0.5)
    assert measured(machine, iter([10.0])).time == Seconds(10.0, 10.0, 10.0)
    assert measured(machine, iter([])).time == Seconds()


def test_a_block_is_measured_again_after_other_work(machine: FakeTime) -> None:
    clock, calls = Clock(CPU), Calls()
    while call(clock, calls, machine, 0.01):
        pass
    before = count(calls)
    for _ in range(100):
        machine.passes(0.01)
        assert not call(clock, calls, machine, 0.02)
    machine.passes(LEAST_SECONDS)
    while call(clock, calls, machine, 0.02):
        pass
    assert count(calls) - before == pytest.approx(SLICE_SECONDS / 0.02, abs=1)
    assert calls.time.high == pytest.approx(0.02)
    assert calls.time.low == pytest.approx(0.01)


def test_measuring_takes_at_most_as_long_as_other_work_and_a_little(machine: FakeTime) -> None:
    """Also where a call takes minutes, so that the steps between the calls do not ask for one each."""
    clock, calls, work = Clock(CPU), Calls(), 0.0
    for _ in range(200):
        machine.passes(5.0)
        work += 5.0
        call(clock, calls, machine, 100.0)
    assert 100.0 * count(calls) <= work + 100.0 * FEWEST_CALLS


def test_weights_that_come_later_than_a_block_computes() -> None:
    calls = Calls(copying=2.0)
    for _ in range(8):
        calls.add(0.5, 0.5, now=0.0)
    assert calls.time == Seconds(2.0, 2.0, 2.0)


def test_laps_tell_blocks_from_what_is_around_them(machine: FakeTime) -> None:
    clock, calls = Clock(CPU), Calls()
    machine.passes(3.0)
    clock.lap()
    for _ in range(1000):
        call(clock, calls, machine, 0.01)
    machine.passes(0.5)
    clock.skip(0.25)
    lap = clock.lap()
    assert lap.outside == pytest.approx(0.75)
    assert lap.calls == {calls: 1000}
    assert lap.inside.typical == pytest.approx(10.0)
    assert clock.lap() == Lap()


def test_a_phase_varies_as_its_rehearsals_and_as_the_blocks() -> None:
    calls = Calls(first=2.0)
    laps = [Lap(outside, Counter({calls: 3})) for outside in (1.0, 1.5, 1.0)]
    assert time_of(laps, Seconds()) == Seconds(7.0, 7.0, 7.5)
    assert time_of(laps, Seconds(10.0, 5.0, 12.0)) == Seconds(7.0, 6.5, 7.5)
    assert time_of(laps[:1], Seconds(10.0, 10.0, 20.0)) == Seconds(7.0, 7.0, 8.0)
    assert time_of([Lap()], Seconds(1.0, 1.0, 1.0)) == Seconds()


def test_on_a_gpu_the_time_of_a_core_says_nothing(machine: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    clock, calls = Clock(torch.device("cuda")), Calls()
    for _ in range(200):
        call(clock, calls, machine, 0.01, worked=0.001)
    assert calls.time.low == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("spread", "took", "is_worth"),
    [
        (0.0, [1.0], True),
        (0.0, [1.0, 1.0], False),
        (0.5, [1.0, 1.0], True),
        (0.5, [5.0, 2.5], True),
        (0.5, [1.0, 2.5, 2.5], False),
        (0.5, [0.1] * MOST_TIMES, False),
        (0.5, [60.0], False),
        (0.0, [12.0], False),
    ],
)
def test_a_quick_rehearsal_is_repeated_until_its_times_are_stable(
    spread: float, took: list[float], is_worth: bool
) -> None:
    assert is_worth_repeating(Seconds(10.0, 10.0, 10.0 + 10.0 * spread), took) == is_worth
