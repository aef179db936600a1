"""What is watched while a video is made: seconds of steps, windows and hooks, blocks that run, and the pictures."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from omniavatar.engine.surround import Around
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Forward, Job, Step, Window
    from omniavatar.media.sound import Soundtrack

ENGINE = ("", "")
HARNESS = ("", "harness")


class HookTimes:
    """Seconds of each hook of each unit, counted for the innermost one that runs; the rest is the engine's.

    On a GPU the device is waited for on both sides of every hook, so it is slower than a video that is not profiled.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._running = [ENGINE]
        self._since: float | None = None
        self._engine: Engine | None = None

    @contextmanager
    def counting(self, engine: Engine) -> Iterator[None]:
        """Count for the time of a with-block."""
        self._engine = engine
        self._now()
        try:
            with engine.instrumented(Around(self.inside)):
                yield
        finally:
            self._now()
            self._since, self._engine = None, None

    @contextmanager
    def inside(self, unit: str, hook: str) -> Iterator[None]:
        """Count the block for this hook."""
        self._now()
        self._running.append((unit, hook))
        try:
            yield
        finally:
            self._now()
            self._running.pop()

    def _now(self) -> None:
        """What has passed since the last call was the innermost hook's."""
        if self._engine is not None:
            self._engine.wait()
            now = time.perf_counter()
            if self._since is not None:
                self.seconds[self._running[-1]] += now - self._since
            self._since = now


@dataclass
class Made:
    """What one video became: pictures (t h w 3) uint8, None without a decoder; the latents of its windows (1 c t h w).

    borders: the frames with which its further windows begin. silence: seconds that the plan puts in front of a sound.
    """

    frames: np.ndarray | None
    latents: list[Tensor]
    borders: tuple[int, ...]
    silence: float
    size: tuple[int, int]


@dataclass
class Timed:
    """Seconds of the steps and windows of one video, and how many blocks its calls have and ran."""

    steps: list[float] = field(default_factory=list)
    windows: list[float] = field(default_factory=list)
    blocks: int = 0
    blocks_run: int = 0


class Probe:
    """Observes an engine. `timed` is that of the last video; pictures are kept for the time of `keeping` only."""

    def __init__(self) -> None:
        self.timed = Timed()
        self.hooks = HookTimes()
        self._keeps = False
        self._pictures: list[np.ndarray] = []
        self._borders: tuple[int, ...] = ()
        self._silence = 0.0
        self._size = (0, 0)
        self._latents: list[Tensor] = []
        self._window_started = self._step_started = 0.0

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep latents and pictures of the videos made in the with-block, until `made` is asked for."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False

    def made(self) -> Made:
        """What became of the last video; it is not kept any longer."""
        pictures, latents, self._pictures, self._latents = self._pictures, self._latents, [], []
        frames = np.concatenate(pictures) if pictures else None
        return Made(frames, latents, self._borders, self._silence, self._size)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self.timed = Timed()
        self._pictures, self._latents = [], []

    @hookimpl
    def begin_window(self, window: Window) -> None:
        self._window_started = time.perf_counter()

    @hookimpl
    def before_step(self, step: Step) -> None:
        if not step.evaluation:
            self._step_started = time.perf_counter()

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.timed.blocks += len(getattr(forward.network, "blocks", ()))

    @hookimpl
    def before_block(self, forward: Forward) -> None:
        self.timed.blocks_run += 1

    @hookimpl(wrapper=True)
    def after_step(self, step: Step) -> Iterator[None]:
        result = yield
        step.engine.wait()
        self.timed.steps.append(time.perf_counter() - self._step_started)
        return result

    @hookimpl(wrapper=True)
    def end_window(self, window: Window) -> Iterator[None]:
        result = yield
        window.engine.wait()
        self.timed.windows.append(time.perf_counter() - self._window_started)
        if self._keeps:
            with self.hooks.inside(*HARNESS):
                self._latents.append(window.video_latents.detach().float().cpu().clone())
        return result

    @hookimpl
    def output_frames(self, frames: np.ndarray) -> None:
        if self._keeps:
            self._pictures.append(frames)

    @hookimpl(trylast=True)
    def end_job(self, job: Job) -> None:
        soundtrack: Soundtrack | None = job.get("soundtrack")
        self._borders = tuple(span.keep_start for span in job.spans[1:])
        self._silence = 0.0 if soundtrack is None else max(0.0, soundtrack.delay_seconds - 1 / job.fps)
        self._size = job.size
