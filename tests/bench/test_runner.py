"""Measuring: the order, what goes wrong, and what is found out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from omniavatar.bench.record import Combination
from omniavatar.bench.runner import Contender, Outcome, Runner, Schedule
from omniavatar.cli.bench import explained
from omniavatar.engine.scopes import Job, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from tests.bench.scenes import Shifts, Skips, contender, maker

Makers = dict[str, Callable[[], Contender]]


class Notes(PipelineUnit):
    """Puts down the name of its combination and the seed for every video."""

    name = "notes"

    def __init__(self, who: str, notes: list[tuple[str, int]]) -> None:
        super().__init__()
        self.who, self.notes = who, notes

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self.notes.append((self.who, job.seed))


class Breaks(PipelineUnit):
    """Goes wrong at video number `at`."""

    name = "breaks"

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = at, error

    @hookimpl
    def end_window(self, window: Window) -> None:
        if window.is_last:
            self.left -= 1
            if self.left == 0:
                raise self.error


def refused() -> Contender:
    raise PlanError("these do not fit")


def measured(makers: Makers, **schedule: object) -> tuple[Runner, list[Combination]]:
    settings: dict[str, Any] = {"seeds": (1,), "repeats": 2, "warmup": 0, **schedule}
    runner = Runner(makers, Schedule(**settings), explain=explained)
    outcomes = runner.run()
    return runner, [outcome.combination(outcomes[0]) for outcome in outcomes]


def noting(name: str, notes: list[tuple[str, int]]) -> Callable[[], Contender]:
    return lambda: contender(Notes(name, notes), seeds=(1, 2), frames=5)


def test_combinations_take_turns() -> None:
    notes: list[tuple[str, int]] = []
    measured({name: noting(name, notes) for name in "ab"}, seeds=(1, 2), warmup=1)
    pairs = [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    warm_up, profiled, rounds = [("a", 1), ("b", 1)], pairs, 2 * pairs
    assert notes == warm_up + profiled + rounds


def test_one_at_a_time_is_let_go_before_the_next_is_loaded() -> None:
    alive: list[weakref.ref[object]] = []

    class Counts(PipelineUnit):
        name = "counts"

        @hookimpl
        def setup(self, engine: object) -> None:
            gc.collect()
            assert [one() for one in alive] == [None] * len(alive)
            alive.append(weakref.ref(engine))

    notes: list[tuple[str, int]] = []
    makers: Makers = {
        name: lambda name=name: contender(Counts(), Notes(name, notes), frames=5)  # type: ignore[misc]
        for name in "abc"
    }
    _, found = measured(makers, interleaved=False)
    assert [one.status for one in found] == ["measured"] * 3, [one.reason for one in found]
    assert notes == [(name, 1) for name in "aaabbbccc"]
    assert found[1].quality is not None


def test_the_refused_and_the_broken_do_not_stop_the_rest() -> None:
    makers: Makers = {
        "first": maker(frames=5),
        "refused": refused,
        "breaks at once": maker(lambda: Breaks(1, ValueError("no good\nand more")), frames=5),
        "breaks in a round": maker(lambda: Breaks(3, MemoryError()), frames=5),
        "last": maker(frames=5),
    }
    _, found = measured(makers)
    assert [(one.status, one.reason) for one in found[:3]] == [
        ("measured", None),
        ("refused", "these do not fit"),
        ("failed", "profiling, seed 1: ValueError: no good"),
    ]
    assert found[3].status == "failed"
    assert "round 2/2, seed 1: out of memory" in (found[3].reason or "")
    assert "--no-interleave" in (found[3].reason or "")
    assert found[1].times is None
    assert found[3].times is not None
    assert found[4].status == "measured"
    assert found[4].times is not None
    assert len(found[4].times.total_seconds.values) == 2


def test_ctrl_c_keeps_what_was_measured() -> None:
    makers: Makers = {
        "first": maker(frames=5),
        "second": maker(lambda: Breaks(3, KeyboardInterrupt()), frames=5),
        "refused": refused,
    }
    runner, found = measured(makers, repeats=5)
    assert isinstance(runner.interrupted, KeyboardInterrupt)
    assert [one.status for one in found] == ["unfinished", "unfinished", "refused"]
    assert [len(one.times.total_seconds.values) for one in found if one.times is not None] == [2, 1]
    assert found[1].quality is not None
    assert not any(outcome.is_alive for outcome in runner.outcomes)


def test_calls_quality_and_speed_are_those_of_the_combination() -> None:
    makers: Makers = {"first": maker(), "same": maker(), "skips": maker(Skips), "shifts": maker(Shifts)}
    _, (first, same, skips, shifts) = measured(makers)
    assert first.calls is not None
    assert skips.calls is not None
    assert (first.calls.made, first.calls.skipped, first.calls.blocks_run) == (6, 0, 24)
    assert (skips.calls.made, skips.calls.skipped, skips.calls.blocks, skips.calls.blocks_run) == (3, 3, 24, 12)
    assert first.quality is None
    assert first.speed_up == 1
    assert same.quality is not None
    assert (same.quality.identical, same.quality.ssim.median) == (True, pytest.approx(1))
    assert shifts.quality is not None
    assert shifts.quality.psnr_db is not None
    assert shifts.quality.latent_error is not None
    assert 5 < shifts.quality.psnr_db.median < 60
    assert shifts.quality.latent_error.median > 0.001
    assert first.video is not None
    assert (first.video.frames, first.video.windows, first.video.steps) == (17, 3, 6)
    assert {(one.unit, one.hook) for one in shifts.hooks} >= {("shifts", "after_block"), ("transformer", "run_blocks")}
    assert not any(one.unit == "shifts" for one in same.hooks)


def test_the_first_video_is_told_apart() -> None:
    runner, found = measured({"first": maker(frames=5)}, warmup=2, repeats=1)
    assert found[0].times is not None
    assert (found[0].times.first_seconds or 0) > 0
    (outcome,) = runner.outcomes
    assert outcome.frames is not None
    assert outcome.frames.shape == (6, 16, 16, 3)


def test_without_a_reference_there_is_no_quality() -> None:
    _, found = measured({"first": refused, "second": maker(frames=5)})
    assert (found[1].status, found[1].quality, found[1].speed_up) == ("measured", None, None)


def test_an_outcome_without_anything_is_written_down_too() -> None:
    outcome = Outcome("never begun")
    written = outcome.combination(outcome).model_dump(exclude_none=True)
    assert written == {"name": "never begun", "status": "unfinished", "units": (), "hooks": (), "metrics": ()}
