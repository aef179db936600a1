"""What caches must know about a checkpoint, measured while it makes videos: `omni calibrate`.

recorder = Recorder()
engine = Engine(plan, bundle, observers=[recorder])
engine.generate(request)
fit = FITS["teacache"](recorder.changes)
path.write_text(table(fit, bundle, "teacache", ["4 videos"]))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from torch import Tensor

from omniavatar.checkpoints import Bundle, Detection
from omniavatar.engine.scopes import Forward, Step
from omniavatar.errors import CheckpointError, InputError
from omniavatar.hookspecs import hookimpl
from omniavatar.units.teacache import modulations, relative_changes

DEGREE = 4
"""Of the published polynomials."""
TRANSFORMER = "dit"


@dataclass(frozen=True)
class Change:
    """What has changed from one step of a branch to the next one, `step` of `count`.

    modulation, output: relative L1 change of what the blocks are told about time, and of the predicted velocity.
    magnitude: the mean over tokens of the ratio between the norms of what the blocks add.
    """

    step: int
    count: int
    modulation: float
    output: float
    magnitude: float


@dataclass(frozen=True)
class Last:
    """A call to compare the next one with."""

    step: Step
    added: Tensor
    output: Tensor


class Recorder:
    """Observes an engine on one rank, whose plan skips no blocks."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    @hookimpl(trylast=True)
    def before_step(self, step: Step) -> None:
        """When a network first works it is on the device, wherever it was before."""
        if "calibration.modulation" not in step:
            steps = [other for other in step.window.steps if other.expert == step.expert]
            for other, change in zip(steps, relative_changes(modulations(steps)), strict=True):
                other["calibration.modulation"] = change

    @hookimpl(wrapper=True)
    def run_blocks(self, forward: Forward) -> Generator[None, Tensor, Tensor]:
        before = forward.x
        result = yield
        forward["calibration.added"] = result - before
        return result

    @hookimpl(wrapper=True)
    def unembed(self, forward: Forward) -> Iterator[None]:
        yield
        last: Last | None = forward.memory.get("calibration.last")
        now = Last(forward.step, forward["calibration.added"].float(), forward.output)
        if last is not None and last.step.index == now.step.index - 1:
            self.changes.append(change(last, now))
        forward.memory["calibration.last"] = now


def change(last: Last, now: Last) -> Change:
    """What has changed between two calls."""
    return Change(
        step=now.step.index,
        count=len(now.step.window.steps),
        modulation=now.step["calibration.modulation"],
        output=float((now.output - last.output).abs().mean() / last.output.abs().mean()),
        magnitude=float((now.added.norm(dim=-1) / last.added.norm(dim=-1).clamp_min(1e-12)).mean()),
    )


@dataclass(frozen=True)
class Fit:
    """Settings of a unit, and in words how well they describe what was measured."""

    settings: Mapping[str, Sequence[float]]
    error: str = field(compare=False)


def fit_teacache(changes: Sequence[Change]) -> Fit:
    """The polynomial from changes of the modulation to changes of the output, by least squares (arXiv:2411.19108)."""
    x, y = np.array([(change.modulation, change.output) for change in changes]).reshape(-1, 2).T
    distinct = len(np.unique(np.round(x, 9)))
    if distinct <= DEGREE:
        raise InputError(
            f"{distinct + 1} steps are too few to fit a polynomial of degree {DEGREE}; take {DEGREE + 2} or more, best "
            "as many as videos are made with"
        )
    curve = np.polynomial.Polynomial.fit(x, y, DEGREE)
    coefficients = np.zeros(DEGREE + 1)
    found = curve.convert().coef
    coefficients[: len(found)] = found
    off = y - curve(x)
    explained = 1 - off.var() / max(y.var(), 1e-30)
    error = (
        f"{len(y)} changes of the output of {y.mean():.4f} on average, fitted with a root mean square error of "
        f"{np.sqrt((off**2).mean()):.4f} (R2 {explained:.3f})"
    )
    return Fit({"coefficients": [float(f"{value:.9g}") for value in coefficients[::-1]]}, error)


def fit_magcache(changes: Sequence[Change]) -> Fit:
    """The mean ratio at every step (arXiv:2506.09045), 1 where there is nothing to compare with."""
    counts = {change.count for change in changes}
    if len(counts) != 1:
        raise InputError("a video of 1 step has nothing to compare with; take as many steps as videos are made with")
    by_step: dict[int, list[float]] = {}
    for change in changes:
        by_step.setdefault(change.step, []).append(change.magnitude)
    ratios = [round(fmean(by_step.get(step, [1.0])), 5) for step in range(counts.pop())]
    spread = max(max(abs(value - ratios[step]) for value in values) for step, values in by_step.items())
    if len(changes) == len(by_step):
        error = f"{len(changes)} ratios of one branch of one video; how far others are off is not known"
    else:
        error = f"means of {len(changes)} ratios, from which single branches and videos are off by {spread:.4f} at most"
    return Fit({"ratios": ratios}, error)


FITS: Mapping[str, Callable[[Sequence[Change]], Fit]] = {"teacache": fit_teacache, "magcache": fit_magcache}
"""By unit."""


def calibrated(bundle: Bundle) -> Detection:
    """The checkpoint that a table is about: the last file that makes or changes the transformer."""
    for detection in reversed(bundle.detections):
        if any(component.role == TRANSFORMER for component in detection.components):
            return detection
    raise CheckpointError("no model file given has a transformer")


def table(fit: Fit, detection: Detection, unit: str, remarks: Sequence[str]) -> str:
    """A checkpoint table (TOML) with these settings."""
    settings = "\n".join(f"{unit}.{name} = {json.dumps(list(values))}" for name, values in fit.settings.items())
    comments = "\n".join(f"# {remark}" for remark in (f"By omni calibrate {unit}.", *remarks, fit.error))
    names = f"name = {json.dumps(detection.row.name)}\nhash = {json.dumps(detection.header.hash)}"
    return f"{comments}\n[[tuned]]\n{names}\n[tuned.settings]\n{settings}\n"
