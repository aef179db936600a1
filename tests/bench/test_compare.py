"""What counts as worse than before."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from omniavatar.bench.compare import check_comparable, noise, regressions
from omniavatar.bench.machine import machine
from omniavatar.bench.record import (
    Asked,
    Calls,
    Combination,
    Machine,
    Measured,
    Memory,
    Quality,
    Record,
    Spread,
    Times,
    Video,
)
from omniavatar.bench.runner import Runner, Schedule
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl
from tests.bench.scenes import maker

ASKED = Asked(
    models=("tiny.safetensors",),
    device="cpu",
    dtype="float32",
    inputs={"audio": "speech.flac"},
    faces=False,
    size=(64, 64),
    seconds=2.0,
    fps=25,
    seeds=(1, 2),
    settings={},
    repeats=3,
    warmup=1,
    interleaved=True,
)


def record(*combinations: Combination, **changes: Any) -> Record:
    values = {"title": "t", "created": "2026-01-01", "command": "omni bench", "interrupted": False}
    return Record(
        **{**values, "machine": Machine(**machine()), "asked": ASKED, "combinations": combinations, **changes}
    )


def around(value: float, spread: float = 0.01, count: int = 5) -> Spread:
    steps = [index - (count - 1) / 2 for index in range(count)]
    return Spread.of([value * (1 + spread * step) for step in steps])


def combination(total: Spread | None = None, **changes: Any) -> Combination:
    still = around(1.0)
    times = Times(
        load_seconds=changes.pop("load", 1.0),
        first_seconds=None,
        total_seconds=total or still,
        window_seconds=still,
        step_seconds=still,
        prepare_seconds=still,
        decode_seconds=still,
    )
    video = Video(frames=49, height=32, width=32, windows=1, steps=2)
    common = {"name": "x", "status": "measured", "reason": None, "units": (), "times": times, "video": video}
    return Combination(**{**common, **changes})


def worse(old: Combination, new: Combination) -> list[str]:
    return [found.what for found in regressions(record(old), record(new))]


@pytest.mark.parametrize(
    ("old", "new", "is_worse"),
    [
        (around(1.0), around(1.2), True),
        (around(1.0), around(1.04), False),  # below the tolerance
        (around(1.0, 0.15), around(1.2, 0.15), False),  # in the noise
        (around(1.2), around(1.0), False),
        (around(1.0, count=2), around(1.15, count=2), False),  # two values have no spread to speak of
        (around(1.0, count=2), around(1.3, count=2), True),
    ],
)
def test_times_beyond_noise(old: Spread, new: Spread, is_worse: bool) -> None:
    assert worse(combination(old), combination(new)) == (["total seconds"] if is_worse else [])


def test_noise_is_three_standard_errors_of_a_difference() -> None:
    spread = Spread.of([0.0, 1.0, 2.0, 3.0, 4.0])  # interquartile range 2
    assert noise(spread, Spread.of([5.0])) == pytest.approx(3 * 0.93 * 2 / 5**0.5)


def metric(value: float, better: str | None = "higher", tolerance: float = 0.01) -> dict[str, Any]:
    """The fields of a combination in which a package's metric has about this value."""
    told = {"name": "sync", "package": "omniavatar-x", "heading": "sync", "description": "how well the lips follow"}
    return {"metrics": (Measured(**told, better=better, tolerance=tolerance, values=around(value)),)}


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "load seconds": ({"load": 1.0}, {"load": 1.6}),
    "peak device": (
        {"memory": Memory(peak_device_mib=1000, peak_host_mib=None)},
        {"memory": Memory(peak_device_mib=1070, peak_host_mib=None)},
    ),
    "transformer blocks that run": (
        {"calls": Calls(made=4, skipped=0, blocks=16, blocks_run=12)},
        {"calls": Calls(made=4, skipped=0, blocks=16, blocks_run=13)},
    ),
    "status": ({}, {"status": "failed", "reason": "no", "times": None}),
    "identical to the first": (
        {"quality": Quality(identical=True, psnr_db=None, ssim=Spread.of([1.0]), latent_error=None)},
        {"quality": Quality(identical=False, psnr_db=Spread.of([60.0]), ssim=Spread.of([1.0]), latent_error=None)},
    ),
    "sync": (metric(0.9), metric(0.8)),
}


@pytest.mark.parametrize("what", PAIRS)
def test_what_else_is_worse(what: str) -> None:
    old, new = (combination(**dict(values)) for values in PAIRS[what])
    assert worse(old, new) == [what]
    assert worse(old, old) == []
    if what != "status":
        assert worse(new, old) == []


@pytest.mark.parametrize(
    ("old", "new", "is_worse"),
    [
        (metric(0.9, tolerance=0.2), metric(0.8, tolerance=0.2), False),
        (metric(0.9, "lower"), metric(0.8, "lower"), False),
        (metric(0.8, "lower"), metric(0.9, "lower"), True),
        (metric(0.8, "lower", tolerance=0.2), metric(0.9, "lower", tolerance=0.2), False),
        (metric(0.8, None), metric(9.0, None), False),
        (metric(0.9), {}, False),
    ],
)
def test_metrics_say_what_is_worse(old: dict[str, Any], new: dict[str, Any], is_worse: bool) -> None:
    assert worse(combination(**old), combination(**new)) == (["sync"] if is_worse else [])


def test_seeds_are_held_against_themselves() -> None:
    """Seeds differ far more than what has changed, and it is found all the same."""
    old = Quality(identical=False, psnr_db=Spread.of([20.0, 40.0]), ssim=Spread.of([0.5, 0.9]), latent_error=None)
    new = Quality(identical=False, psnr_db=Spread.of([19.9, 39.9]), ssim=Spread.of([0.45, 0.85]), latent_error=None)
    assert worse(combination(quality=old), combination(quality=new)) == ["SSIM"]


def test_on_another_device_counts_are_compared_and_times_are_not() -> None:
    old = combination(around(1.0), calls=Calls(made=1, skipped=0, blocks=4, blocks_run=3))
    new = combination(around(9.0), calls=Calls(made=1, skipped=0, blocks=4, blocks_run=4))
    elsewhere = Machine(**{**machine(), "device": "another"})
    found = regressions(record(old, machine=elsewhere), record(new))
    assert [one.what for one in found] == ["transformer blocks that run"]


def test_new_and_unfinished_combinations_are_no_regressions() -> None:
    assert regressions(record(), record(combination(around(9.0)))) == []
    assert worse(combination(), combination(around(9.0), status="unfinished")) == []


def test_only_the_same_can_be_compared() -> None:
    check_comparable(ASKED, ASKED.model_copy(update={"repeats": 9, "warmup": 0, "interleaved": False}), "old.json")
    with pytest.raises(InputError, match=r"old.json was measured with other seconds: 3.0 there, 2.0 here"):
        check_comparable(ASKED.model_copy(update={"seconds": 3.0}), ASKED, "old.json")


class Drags(PipelineUnit):
    """Sabotage: a pause before every step."""

    name = "drags"

    @hookimpl
    def before_step(self) -> None:
        time.sleep(0.05)


@pytest.mark.slow
def test_a_sabotaged_unit_is_found(tmp_path: Path) -> None:
    records = []
    for spoilt in (False, True):
        makers = {"fine": maker(frames=5), "spoilt": maker(Drags, frames=5) if spoilt else maker(frames=5)}
        runner = Runner(makers, Schedule(seeds=(1,), repeats=5))
        first, second = runner.run()
        records.append(record(first.combination(first), second.combination(first)))
    records[0].write(tmp_path / "old.json")
    found = regressions(Record.read(tmp_path / "old.json"), records[1], tolerance=0.5)
    assert {"total seconds", "step seconds"} <= {one.what for one in found if one.combination == "spoilt"}
    assert regressions(records[0], records[0]) == []
