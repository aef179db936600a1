"""Two records of the same measurement: what has become worse beyond noise.

Times and memory are compared on the same device only. With m, q and n for median, interquartile range and number of
values, old and new:

- a time is worse if m_new - m_old > tolerance * m_old + 3 * sqrt(e_old^2 + e_new^2), with e = 0.93 q / sqrt(n), which
  is the standard error of a median where the values are normal (1.2533 sigma / sqrt(n), sigma = q / 1.349). Loading is
  one value and has no q: it is worse beyond 0.5 s and half as much again. Below MANY values on either side q says
  little, so the tolerance is at least FEW;
- peak memory is worse beyond the tolerance and MEMORY_MIB;
- transformer blocks that run are counted, so one more is worse;
- quality is held seed against seed, and the median of the changes counts: PSNR is worse if it falls by more than 0.5
  dB, SSIM by more than 0.01, a package's metric by more than its tolerance; latent errors, and metrics that are better
  when lower, if they grow by more than a tenth and 0.01 or the metric's tolerance; a combination is worse that was
  identical to the first and is not;
- a combination that was measured and is now refused or failed is worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from omniavatar.bench.record import Asked, Combination, Measured, Quality, Record, Spread
from omniavatar.errors import InputError

FREE = ("repeats", "warmup", "interleaved")
"""What may differ between two records."""
FEW, MANY = 0.2, 3
MEMORY_MIB = 64.0
TIMES = ("total_seconds", "window_seconds", "step_seconds", "prepare_seconds", "decode_seconds")


@dataclass(frozen=True)
class Regression:
    """Something that has become worse."""

    combination: str
    what: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.combination}: {self.what} was {self.old} and is {self.new}"


def check_comparable(old: Asked, new: Asked, path: object) -> None:
    """Raises InputError that names what was measured differently."""
    for name in Asked.model_fields:
        before, now = getattr(old, name), getattr(new, name)
        if name not in FREE and before != now:
            raise InputError(
                f"{path} was measured with other {name}: {before} there, {now} here; compare the same, or leave "
                "--compare out"
            )


def regressions(old: Record, new: Record, tolerance: float = 0.05) -> list[Regression]:
    """What is worse in the new record; see the module's docstring. Combinations of one record alone do not count."""
    earlier = {combination.name: combination for combination in old.combinations}
    found: list[Regression] = []
    for combination in new.combinations:
        before = earlier.get(combination.name)
        if before is None or before.status != "measured" or combination.status == "unfinished":
            continue
        if combination.status != "measured":
            found.append(Regression(combination.name, "status", "measured", combination.status))
            continue
        if same_device(old, new):
            found += _slower(before, combination, tolerance)
            found += _larger(before, combination, tolerance)
        found += _more_calls(before, combination)
        found += _less_alike(before.name, before.quality, combination.quality)
        found += _worse_metrics(before.name, before.metrics, combination.metrics)
    return found


def same_device(old: Record, new: Record) -> bool:
    """Whether times and memory can be compared."""
    return (old.machine.device, old.machine.torch_threads) == (new.machine.device, new.machine.torch_threads)


def _slower(old: Combination, new: Combination, tolerance: float) -> Iterator[Regression]:
    if old.times is None or new.times is None:
        return
    for name in TIMES:
        before, now = getattr(old.times, name), getattr(new.times, name)
        share = max(tolerance, FEW) if min(len(before.values), len(now.values)) < MANY else tolerance
        if now.median - before.median > share * before.median + noise(before, now):
            yield Regression(new.name, _plain(name), f"{before.median:.4g} s", f"{now.median:.4g} s")
    loaded, loads = old.times.load_seconds, new.times.load_seconds
    if loads - loaded > max(0.5, 0.5 * loaded):
        yield Regression(new.name, "load seconds", f"{loaded:.4g} s", f"{loads:.4g} s")


def noise(old: Spread, new: Spread) -> float:
    """How far two medians are apart by chance: 3 standard errors of their difference."""
    errors = (0.93 * spread.iqr / math.sqrt(len(spread.values)) for spread in (old, new))
    return 3 * math.hypot(*errors)


def _larger(old: Combination, new: Combination, tolerance: float) -> Iterator[Regression]:
    if old.memory is None or new.memory is None:
        return
    for name in ("peak_device_mib", "peak_host_mib"):
        before, now = getattr(old.memory, name), getattr(new.memory, name)
        if before is not None and now is not None and now - before > max(MEMORY_MIB, tolerance * before):
            yield Regression(new.name, name.removesuffix("_mib").replace("_", " "), f"{before} MiB", f"{now} MiB")


def _more_calls(old: Combination, new: Combination) -> Iterator[Regression]:
    if old.calls is not None and new.calls is not None and new.calls.blocks_run > old.calls.blocks_run:
        before, now = old.calls.blocks_run, new.calls.blocks_run
        yield Regression(new.name, "transformer blocks that run", str(before), str(now))


def _less_alike(name: str, old: Quality | None, new: Quality | None) -> Iterator[Regression]:
    if old is None or new is None:
        return
    if old.identical and not new.identical:
        yield Regression(name, "identical to the first", "yes", "no")
    yield from _fell(name, "PSNR", old.psnr_db, new.psnr_db, 0.5)
    yield from _fell(name, "SSIM", old.ssim, new.ssim, 0.01)
    yield from _grew(name, "latent error", old.latent_error, new.latent_error)


def _worse_metrics(name: str, old: Sequence[Measured], new: Sequence[Measured]) -> Iterator[Regression]:
    """Of the metrics of both, that mean the same."""
    earlier = {(one.package, one.name): one for one in old}
    for one in new:
        before = earlier.get((one.package, one.name))
        if before is None or before.better != one.better:
            continue
        if one.better == "higher":
            yield from _fell(name, one.name, before.values, one.values, one.tolerance)
        elif one.better == "lower":
            yield from _grew(name, one.name, before.values, one.values, one.tolerance)


def _fell(name: str, what: str, old: Spread | None, new: Spread | None, least: float) -> Iterator[Regression]:
    if old is not None and new is not None and change(old, new) < -least:
        yield Regression(name, what, f"{old.median:.4g}", f"{new.median:.4g}")


def _grew(name: str, what: str, old: Spread | None, new: Spread | None, least: float = 0.01) -> Iterator[Regression]:
    if old is not None and new is not None and change(old, new) > max(least, 0.1 * old.median):
        yield Regression(name, what, f"{old.median:.4g}", f"{new.median:.4g}")


def change(old: Spread, new: Spread) -> float:
    """How much a figure has grown: the median of the seeds' changes, or the change of the medians."""
    if len(old.values) != len(new.values):
        return new.median - old.median
    return Spread.of([now - before for before, now in zip(old.values, new.values, strict=True)]).median


def _plain(name: str) -> str:
    return name.replace("_", " ")
