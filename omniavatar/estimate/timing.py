"""How long the calls of a block take, and how sure that is.

A block is computed until its time is known, and then only takes that time. Other work on the machine comes and goes, so
what counts is not single calls but slices of many, and a block is measured again now and then, between other work.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

FEWEST_CALLS = 4
LEAST_SECONDS, MOST_SECONDS = 1.5, 5.0
"""A block is measured in at least so many calls and for at least so long (clocks of a GPU sink under load); while its
time is not stable, for up to so long."""
SLICE_SECONDS = 0.25
"""Times are compared as means over slices of at least so long: a run, too, is the sum of many calls."""
STABLE, BUSY = 0.1, 0.5
"""Spreads, as parts of the time: up to the one it is stable, from the other on the machine must be busy."""


@dataclass(frozen=True)
class Seconds:
    """A time with its spread: what is to be expected, and the least and the most that it may be."""

    typical: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        """The sum: what makes one part slow makes the other slow, so ends are added too."""
        return Seconds(self.typical + other.typical, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(self.typical * factor, self.low * factor, self.high * factor)

    def at_least(self, seconds: float) -> Seconds:
        """The same, where something else takes so long at the same time."""
        return Seconds(max(self.typical, seconds), max(self.low, seconds), max(self.high, seconds))

    def over(self, part: Seconds) -> Seconds:
        """This with the ends as far apart as those of `part`, if they are not already."""
        if not part.typical:
            return self
        low, high = part.low / part.typical, part.high / part.typical
        return Seconds(self.typical, min(self.low, self.typical * low), max(self.high, self.typical * high))

    @property
    def spread(self) -> float:
        """How far the ends are apart, as a part of the time."""
        return (self.high - self.low) / self.typical if self.typical else 0.0

    @property
    def is_stable(self) -> bool:
        return self.spread <= STABLE


@dataclass
class Slice:
    """Some calls one after another: how many, seconds in all, and for how long of these the process had a core."""

    calls: int = 0
    seconds: float = 0.0
    worked: float = 0.0


@dataclass(eq=False)
class Calls:
    """Measured calls of one block with arguments of one signature. copying: seconds that a call takes in any case.

    The first call does not count if there are others: it is not warm.
    """

    copying: float = 0.0
    first: float | None = None
    slices: list[Slice] = field(default_factory=list)
    result: Any = None
    _slices_before: int = 0
    _measured_at: float | None = None

    def are_due(self, now: float) -> bool:
        """Whether the next call, at this time, is to be measured: once more, for one slice, when other work has taken
        as long as all measuring."""
        if self._measured_at is not None and now - self._measured_at >= sum(each.seconds for each in self.slices):
            self._measured_at = None
            self._slices_before = len(self.slices)
        return self._measured_at is None

    def add(self, seconds: float, worked: float, now: float) -> None:
        """A call was measured; it ended now. worked: for how long of it the process had a core."""
        if self.first is None:
            self.first = seconds
            return
        here = self.slices[self._slices_before :]
        if not here or here[-1].seconds >= SLICE_SECONDS:
            here = [*here, Slice()]
            self.slices.append(here[-1])
        here[-1].calls += 1
        here[-1].seconds += seconds
        here[-1].worked += worked
        if self._is_enough(here):
            self._measured_at = now

    def _is_enough(self, here: Sequence[Slice]) -> bool:
        """Whether these slices, measured without a pause, are enough."""
        seconds = sum(each.seconds for each in here)
        if self._slices_before:
            return seconds >= SLICE_SECONDS
        if sum(each.calls for each in here) < FEWEST_CALLS - 1 or seconds < LEAST_SECONDS:
            return False
        return self.time.is_stable or seconds >= MOST_SECONDS

    @property
    def time(self) -> Seconds:
        """Of a call when it is warm. From what it would take if the process always had a core, or took in its fastest
        slice, to what it took in the slowest."""
        if not self.slices:
            first = self.first or 0.0
            return Seconds(first, first, first).at_least(self.copying)
        means = [each.seconds / each.calls for each in self.slices]
        worked = [each.worked / each.calls for each in self.slices]
        typical = sum(each.seconds for each in self.slices) / sum(each.calls for each in self.slices)
        return Seconds(typical, min(*means, *worked), max(means)).at_least(self.copying)


@dataclass(frozen=True)
class Lap:
    """What passed on a clock: seconds outside the blocks, and how often each block was called."""

    outside: float = 0.0
    calls: Counter[Calls] = field(default_factory=Counter)

    def __add__(self, other: Lap) -> Lap:
        return Lap(self.outside + other.outside, self.calls + other.calls)

    @property
    def inside(self) -> Seconds:
        """The time of the calls."""
        return total(calls.time * count for calls, count in self.calls.items())


class Clock:
    """The time of the run: what passes on the device, and the calls of blocks, which may be skipped."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._measured = 0.0
        self._skipped = 0.0
        self._calls: Counter[Calls] = Counter()
        self._begun = self.outside()

    def wait(self) -> float:
        """Seconds that have passed, once the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def outside(self) -> float:
        """Seconds that have passed, without those of measured calls."""
        return self.wait() - self._measured

    def skip(self, seconds: float) -> None:
        """Let some time of the run pass."""
        self._skipped += seconds

    def measures(self, calls: Calls) -> bool:
        """Count a call of a block, and say whether it is to be measured."""
        self._calls[calls] += 1
        return calls.are_due(time.perf_counter())

    @contextmanager
    def measuring(self, calls: Calls) -> Iterator[None]:
        """Measure a call, which then does not count as work outside the blocks."""
        begin, worked = self.wait(), time.thread_time()
        yield
        end, worked = self.wait(), time.thread_time() - worked
        seconds = end - begin
        self._measured += seconds
        calls.add(seconds, worked if self.device.type == "cpu" else seconds, end)

    def lap(self) -> Lap:
        """What has passed since the last lap."""
        now = self.outside()
        lap = Lap(now - self._begun + self._skipped, self._calls)
        self._begun, self._skipped, self._calls = now, 0.0, Counter()
        return lap


def total(times: Iterable[Seconds]) -> Seconds:
    """The sum of some times."""
    return sum(times, Seconds())


def time_of(laps: Sequence[Lap], blocks: Seconds) -> Seconds:
    """The time of a part of the run that was rehearsed some times, or once.

    blocks: that of all blocks; what is outside of them is taken to vary at least as much, for it was measured less.
    """
    outside = [lap.outside for lap in laps]
    measured = Seconds(statistics.median(outside), min(outside), max(outside))
    return laps[-1].inside + measured.over(blocks)
