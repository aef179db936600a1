"""What a package measures of made videos, for `omni bench`: the door that `omni_metrics` opens.

def brightness(video: MadeVideo) -> float | None:
    return float(video.frames.mean() / 255)

Metric("brightness", "mean of all pixels, 0..1", brightness, better=None)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np

Need = Literal["portrait", "sound", "reference"]
NAME = re.compile(r"[a-z][a-z0-9-]*")
SAMPLE_RATE = 16000
Value = TypeVar("Value")


@dataclass(frozen=True)
class MadeVideo:
    """A made video and what it was made from.

    frames: (t h w 3) uint8. portrait: the given picture as the video's frame 0 shows it (h w 3) uint8. sound: what is
    heard with the frames, (n,) float32 at 16 kHz, its first sample at the beginning of frame 0. prompt: the text.
    reference: the video of the first combination of units with the same inputs and seed (t h w 3) uint8; None for that
    one itself, and where it is of another length or size. chunk_starts: frames with which further chunks begin.
    generator: the name of the clip generator that the portrait is from (`omni bench --faces`); None: the user's own.
    """

    frames: np.ndarray
    fps: int
    portrait: np.ndarray | None = None
    sound: np.ndarray | None = None
    prompt: str = ""
    reference: np.ndarray | None = None
    chunk_starts: tuple[int, ...] = ()
    generator: str | None = None
    _kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: str, make: Callable[[], Value]) -> Value:
        """What `make` returns, called once a video: for work that several metrics share."""
        if key not in self._kept:
            self._kept[key] = make()
        value: Value = self._kept[key]
        return value


@dataclass(frozen=True)
class Metric:
    """One figure of a made video.

    name: lower case, with hyphens. description: what the number is, in a line. measure: the number of a video; None
    where it has none, such as a video of other faces. needs: what must be there, else the video is left out. better:
    which way is better; None: neither. unit: such as "dB"; a plain number has none. label: short heading of a column.
    tolerance: a median change in the wrong direction by more than that is worse in `omni bench --compare`.
    """

    name: str
    description: str
    measure: Callable[[MadeVideo], float | None]
    needs: tuple[Need, ...] = ()
    better: Literal["higher", "lower"] | None = "higher"
    unit: str = ""
    label: str = ""
    tolerance: float = 0.01

    @property
    def heading(self) -> str:
        """The label, or else the name, with the unit."""
        return " ".join(filter(None, (self.label or self.name, self.unit)))

    def of(self, video: MadeVideo) -> float | None:
        """The number; None if something that is needed is not there, or if it is not finite."""
        if any(getattr(video, need) is None for need in self.needs):
            return None
        number = self.measure(video)
        return None if number is None or not math.isfinite(number) else float(number)


def metric_fault(metric: Any, known: Iterable[Metric] = ()) -> str:
    """Why something is no metric that can be asked, in one line; nothing if it is one. known: those that are there."""
    return next(metric_faults(metric, known), "")


def metric_faults(metric: Any, known: Iterable[Metric]) -> Iterator[str]:
    """All that is wrong, the first thing that matters first."""
    if not isinstance(metric, Metric):
        yield f"{metric!r} is not a Metric"
        return
    if not (isinstance(metric.name, str) and NAME.fullmatch(metric.name)):
        yield f"a metric has the name {metric.name!r}; give lower-case words with hyphens"
    if not callable(metric.measure):
        yield f"metric '{metric.name}' has no function 'measure'"
    for need in metric.needs:
        if need not in get_args(Need):
            yield f"metric '{metric.name}' needs {need!r}; choices: {', '.join(get_args(Need))}"
    if metric.better not in ("higher", "lower", None):
        yield f"metric '{metric.name}' is better {metric.better!r}; choices: 'higher', 'lower', None"
    for one in known:
        if one.name == metric.name:
            yield f"metric '{metric.name}' exists already"
        elif one.heading == metric.heading:
            yield f"metric '{metric.name}' has the heading '{metric.heading}', which '{one.name}' has already"
