"""Measuring combinations: loaded, warmed up, profiled, and then timed in turns.

    outcomes = Runner({"default": make_default, "default+teacache": make_teacache}, Schedule(seeds=(42,))).run()

Every combination has an engine with networks of its own. Units may change networks in place, and nothing would notice
if they did it to one that another combination uses, so none are shared. What does not fit is measured with
`interleaved=False`: one combination after the other, each let go before the next is loaded.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omniavatar.bench.measurements import Asking, Metrics, video_of
from omniavatar.bench.measures import Likenesses
from omniavatar.bench.memory import Device, Host, Meter
from omniavatar.bench.probe import ENGINE, HARNESS, Made, Probe
from omniavatar.bench.record import Calls, Combination, HookTime, Memory, Spread, Times, Video
from omniavatar.engine.progress import Status
from omniavatar.errors import Ended, OmniError, PlanError

if TYPE_CHECKING:
    from omniavatar.cli.progress import Watcher
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.run import Result
    from omniavatar.engine.scopes import Request

log = logging.getLogger(__name__)
SHOWN = 6
"""Frames that are kept of a combination's first video."""


@dataclass(frozen=True)
class Schedule:
    """How often what is measured."""

    seeds: tuple[int, ...] = (42,)
    repeats: int = 3
    warmup: int = 1
    interleaved: bool = True

    @property
    def videos(self) -> int:
        """Videos of one combination."""
        return self.warmup + len(self.seeds) * (1 + self.repeats)


@dataclass
class Contender:
    """An engine that is to be measured, what it is asked for by seed, and its observers."""

    engine: Engine
    requests: Mapping[int, Request]
    watcher: Watcher
    probe: Probe


@dataclass(frozen=True)
class Sample:
    """Seconds of one timed video."""

    total: float
    window: float
    step: float
    prepare: float
    decode: float


@dataclass
class Outcome:
    """What has been found out about a combination so far; `contender` is None before it is made and at the end."""

    name: str
    contender: Contender | None = None
    status: str = "unfinished"
    reason: str | None = None
    units: tuple[str, ...] = ()
    load_seconds: float | None = None
    first_seconds: float | None = None
    samples: list[Sample] = field(default_factory=list)
    video: Video | None = None
    calls: Calls | None = None
    likenesses: Likenesses = field(default_factory=Likenesses)
    numbers: list[dict[tuple[str, str], float]] = field(default_factory=list)
    profiled: int = 0
    hooks: dict[tuple[str, str], float] = field(default_factory=dict)
    frames: np.ndarray | None = None
    peak_device_mib: float | None = None
    peak_host_mib: float | None = None

    @property
    def is_alive(self) -> bool:
        return self.contender is not None

    @property
    def total(self) -> Spread | None:
        return Spread.of([sample.total for sample in self.samples]) if self.samples else None

    def combination(self, first: Outcome, asking: Asking | None = None) -> Combination:
        """As it is written down; `first` is the one that it is compared with, `asking` measured the videos."""
        total, reference = self.total, first.total
        loaded = self.load_seconds is not None
        return Combination(
            name=self.name,
            status=self.status,
            reason=self.reason,
            units=self.units,
            video=self.video,
            times=self._times(),
            speed_up=None if total is None or reference is None else round(reference.median / total.median, 4),
            calls=self.calls,
            memory=Memory(peak_device_mib=self.peak_device_mib, peak_host_mib=self.peak_host_mib) if loaded else None,
            hooks=self._hook_times(),
            engine_seconds=self.hooks[ENGINE] / self.profiled if self.profiled and ENGINE in self.hooks else None,
            quality=None if self is first else self.likenesses.quality(),
            metrics=() if asking is None else asking.measured(self.numbers),
        )

    def _times(self) -> Times | None:
        if self.load_seconds is None or not self.samples:
            return None
        return Times(
            load_seconds=self.load_seconds,
            first_seconds=self.first_seconds,
            **{
                f"{name}_seconds": Spread.of([getattr(sample, name) for sample in self.samples])
                for name in ("total", "window", "step", "prepare", "decode")
            },
        )

    def _hook_times(self) -> tuple[HookTime, ...]:
        found = [
            HookTime(unit=unit, hook=hook, seconds=seconds if hook == "setup" else seconds / max(1, self.profiled))
            for (unit, hook), seconds in self.hooks.items()
            if (unit, hook) not in (ENGINE, HARNESS) and (self.profiled or hook == "setup")
        ]
        return tuple(sorted(found, key=lambda one: -one.seconds))


class Runner:
    """Measures combinations; `interrupted` is what ended it early, if anything did.

    makers: for every combination, by name, what makes its engine without loading anything; an OmniError refuses it.
    show: called with how far the work is. metrics: what packages measure, by package. generator: the name of the clip
    generator that the portraits are from, if they are. explain: why something went wrong, in a line.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[], Contender]],
        schedule: Schedule,
        *,
        device: torch.device | str = "cpu",
        show: Callable[[Status], None] = lambda status: None,
        metrics: Metrics | None = None,
        generator: str | None = None,
        explain: Callable[[Exception], str] = repr,
    ) -> None:
        self.makers = makers
        self.schedule = schedule
        self.show = show
        self.asking = Asking(metrics or {})
        self.generator = generator
        self.explain = explain
        self.device = torch.device(device)
        self.outcomes = [Outcome(name) for name in makers]
        self.interrupted: BaseException | None = None
        self._references: dict[int, Made] = {}
        self._meters = (Meter(Device(self.device)), Meter(Host(), self._host_weights))
        self._done = 0
        self._took: list[float] = []

    def run(self) -> list[Outcome]:
        """Measure what is not refused. Ctrl-C ends it with what was measured until then."""
        with older_objects_set_aside():
            try:
                self._make()
                alive = [outcome for outcome in self.outcomes if outcome.is_alive]
                for group in [alive] if self.schedule.interleaved else [[outcome] for outcome in alive]:
                    self._measure(group)
            except (KeyboardInterrupt, Ended) as error:
                self.interrupted = error
            for outcome in self.outcomes:
                self._release(outcome)
        return self.outcomes

    def _make(self) -> None:
        """Make all engines, so that refusals come before any work."""
        for outcome in self.outcomes:
            try:
                outcome.contender = self.makers[outcome.name]()
                outcome.units = tuple(map(repr, outcome.contender.engine.plan.units))
            except OmniError as error:
                outcome.status, outcome.reason = "refused", str(error)

    def _measure(self, group: Sequence[Outcome]) -> None:
        """All about some combinations, which take turns."""
        schedule = self.schedule
        for outcome in group:
            self._attempt(outcome, "loading", self._load)
        for number in range(schedule.warmup):
            for outcome in group:
                self._attempt(outcome, f"warm-up {number + 1}/{schedule.warmup}", self._warm_up)
        for seed in schedule.seeds:
            for outcome in group:
                self._attempt(outcome, f"profiling, seed {seed}", self._profile, seed)
        for repeat in range(schedule.repeats):
            for seed in schedule.seeds:
                for outcome in group:
                    self._attempt(outcome, f"round {repeat + 1}/{schedule.repeats}, seed {seed}", self._time, seed)
        for outcome in group:
            if outcome.is_alive:
                outcome.status = "measured"
            self._release(outcome)

    def _attempt(self, outcome: Outcome, doing: str, work: Callable[..., None], *arguments: Any) -> None:
        """Work on a combination that is still in the race; if it goes wrong, that one is out."""
        if outcome.contender is None:
            return
        self._show(f"{outcome.name}: {doing}")
        try:
            work(outcome, outcome.contender, *arguments)
        except Exception as error:
            log.info("%s: %s", outcome.name, doing, exc_info=True)
            if isinstance(error, PlanError):  # of a unit that could look only now
                outcome.status, outcome.reason = "refused", str(error)
            else:
                outcome.status, outcome.reason = "failed", f"{doing}: {self.explain(error)}"
            error.__traceback__ = None  # it holds the engine
            self._release(outcome)

    def _load(self, outcome: Outcome, contender: Contender) -> None:
        with self._measured(outcome), contender.probe.hooks.counting(contender.engine):
            contender.watcher.load(contender.engine, lambda: None)
        outcome.load_seconds = contender.watcher.load_seconds
        outcome.hooks = {who: value for who, value in contender.probe.hooks.seconds.items() if who[1] == "setup"}
        contender.probe.hooks.seconds.clear()

    def _warm_up(self, outcome: Outcome, contender: Contender) -> None:
        with self._measured(outcome, counts=False):
            seconds, _ = self._video(contender, self.schedule.seeds[0])
        if outcome.first_seconds is None:
            outcome.first_seconds = seconds

    def _profile(self, outcome: Outcome, contender: Contender, seed: int) -> None:
        """A video with its hooks timed and its pictures kept, which is too slow to be timed itself."""
        probe, request = contender.probe, contender.requests[seed]
        with self._measured(outcome, counts=False), probe.keeping(), probe.hooks.counting(contender.engine):
            seconds, result = self._video(contender, seed)
        if outcome.first_seconds is None:
            outcome.first_seconds = seconds
        outcome.profiled += 1
        outcome.hooks.update({who: value for who, value in probe.hooks.seconds.items() if who[1] != "setup"})
        made = probe.made()
        self._judge(outcome, made, seed)
        if self.asking.metrics:
            reference = None if outcome is self.outcomes[0] else self._references.get(seed)
            video = video_of(made, request.inputs, request.fps, reference, self.generator)
            outcome.numbers += [] if video is None else [self.asking.numbers(video)]
        if outcome.frames is None and made.frames is not None:
            outcome.frames = made.frames[np.linspace(0, len(made.frames) - 1, SHOWN + 1).round().astype(int)[1:]]
        self._describe(outcome, contender, result)

    def _judge(self, outcome: Outcome, made: Made, seed: int) -> None:
        """Hold a video against the first combination's; that one's are kept for it."""
        if outcome is self.outcomes[0]:
            self._references[seed] = made
        elif seed in self._references:
            outcome.likenesses.add(made, self._references[seed])

    def _describe(self, outcome: Outcome, contender: Contender, result: Result) -> None:
        """What a video is and what was called for it, which is the same for all of a combination."""
        figures, timed = contender.watcher.timings, contender.probe.timed
        height, width = result.size
        outcome.video = Video(
            frames=result.frames, height=height, width=width, windows=figures.windows, steps=figures.steps
        )
        outcome.calls = Calls(
            made=figures.transformer_calls - figures.transformer_calls_skipped,
            skipped=figures.transformer_calls_skipped,
            blocks=timed.blocks,
            blocks_run=timed.blocks_run,
        )

    def _time(self, outcome: Outcome, contender: Contender, seed: int) -> None:
        with self._measured(outcome):
            seconds, _ = self._video(contender, seed)
        timed, figures = contender.probe.timed, contender.watcher.timings
        sample = Sample(
            total=seconds,
            window=sum(timed.windows) / max(1, len(timed.windows)),
            step=sum(timed.steps) / max(1, len(timed.steps)),
            prepare=figures.prepare_seconds,
            decode=figures.decode_seconds,
        )
        outcome.samples.append(sample)

    def _video(self, contender: Contender, seed: int) -> tuple[float, Result]:
        """Make one video: the seconds that it took, and what became of it."""
        started = time.perf_counter()
        result = contender.engine.generate(contender.requests[seed])
        contender.engine.wait()
        seconds = time.perf_counter() - started
        self._done += 1
        self._took.append(seconds)
        return seconds, result

    @contextmanager
    def _measured(self, outcome: Outcome, *, counts: bool = True) -> Iterator[None]:
        """Begin an activity with the litter of others gone, watch its memory, and note the combination's peaks."""
        gc.collect()
        with ExitStack() as stack:
            for meter in self._meters:
                stack.enter_context(meter.of(outcome.name, counts=counts))
            yield
        outcome.peak_device_mib, outcome.peak_host_mib = (meter.peak_mib(outcome.name) for meter in self._meters)

    def _host_weights(self, name: str) -> float:
        """Bytes of a combination's weights in host memory."""
        contender = next(outcome.contender for outcome in self.outcomes if outcome.name == name)
        networks = contender.engine.networks.values() if contender is not None else ()
        weights = [weight for network in networks for weight in network.parameters() if weight.device.type == "cpu"]
        return float(sum(weight.numel() * weight.element_size() for weight in weights))

    def _release(self, outcome: Outcome) -> None:
        """Let a combination's engine and networks go."""
        if outcome.contender is None:
            return
        outcome.contender = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        for meter in self._meters:
            meter.release(outcome.name)

    def _show(self, text: str) -> None:
        alive = sum(outcome.is_alive or outcome.status == "measured" for outcome in self.outcomes)
        total = alive * self.schedule.videos
        left = (total - self._done) * float(np.median(self._took)) if self._took else None
        self.show(Status(text, self._done, total, left if left and left > 0 else None))


@contextmanager
def older_objects_set_aside() -> Iterator[None]:
    """Let garbage collection, which runs before each video, look only at what is made in the with-block."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
