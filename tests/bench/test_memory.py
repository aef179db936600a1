"""Peak memory of owners that are held at the same time."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from omniavatar.bench.memory import Host, Meter

MIB = 2**20


class Allocator:
    """A device of which the test says what it holds."""

    def __init__(self) -> None:
        self.held = self.most = 0.0

    def take(self, mib: float, *, keep: float = 0.0) -> None:
        self.most = max(self.most, self.held + mib * MIB)
        self.held += keep * MIB

    def now(self) -> float:
        return self.held

    def reset(self) -> None:
        self.most = self.held

    def peak(self) -> float:
        return self.most


def test_what_others_hold_does_not_count() -> None:
    device = Allocator()
    meter = Meter(device)  # type: ignore[arg-type]
    with meter.of("a"):
        device.take(100, keep=80)
    with meter.of("b"):
        device.take(50, keep=30)
    assert (meter.peak_mib("a"), meter.peak_mib("b")) == (100, 50)
    with meter.of("a"):
        device.take(200)
    assert meter.peak_mib("a") == 280
    device.held -= 80 * MIB
    meter.release("a")
    with meter.of("b"):
        device.take(40)
    assert meter.peak_mib("b") == 70


def test_activities_that_do_not_count_leave_what_they_leave() -> None:
    device = Allocator()
    meter = Meter(device)  # type: ignore[arg-type]
    with meter.of("a", counts=False):
        device.take(500, keep=60)
    assert meter.peak_mib("a") is None
    with meter.of("a"):
        device.take(10)
    with meter.of("b"):
        device.take(10)
    assert (meter.peak_mib("a"), meter.peak_mib("b")) == (70, 10)


def test_the_peak_of_a_process_is_that_of_the_activity() -> None:
    host = Host()
    if host.peak() is None:
        pytest.skip("not Linux, or the peak cannot be set back")
    meter = Meter(host, lambda owner: 0.0)
    for owner, mib in (("large", 100), ("small", 1)):
        # Mapped anew, since what earlier tests have let go may be used again.
        with meter.of(owner), mmap.mmap(-1, mib * MIB) as fresh:
            np.frombuffer(fresh, np.uint8)[:] = 1
    large, small = meter.peak_mib("large"), meter.peak_mib("small")
    assert large is not None
    assert small is not None
    assert 60 < large - small < 140
