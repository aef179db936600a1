"""What is watched while a video is made: seconds of steps, windows and hooks, blocks that run, and the pictures."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from omniavatar.cli.progress import wait_for
from omniavatar.engine.surround import surrounded
from omniavatar.hookspecs import hookimpl
from omniavatar.units.write_video import to_bytes

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Forward, Job, Step, Window

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
            with surrounded(engine.hooks, engine.plan.units, self.inside):
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
            wait_for(self._engine)
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
        self._pictures: list[Tensor] = []
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

    def made(self, job: Job) -> Made:
        """What became of this job, the last; it is not kept any longer."""
        pictures, latents, self._pictures, self._latents = self._pictures, self._latents, [], []
        delay = job.get("audio_delay")
        return Made(
            frames=torch.cat(pictures).numpy() if pictures else None,
            latents=latents,
            borders=tuple(span.keep_start for span in job.spans[1:]),
            silence=0.0 if delay is None else max(0.0, delay - 1 / job.fps),
            size=job.size,
        )

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self.timed = Timed()
        self._pictures, self._latents = [], []

    @hookimpl
    def begin_window(self, window: Window) -> None:
        self._window_started = time.perf_counter()

    @hookimpl
    def before_step(self, step: Step) -> None:
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
        wait_for(step.engine)
        self.timed.steps.append(time.perf_counter() - self._step_started)
        return result

    @hookimpl(wrapper=True)
    def end_window(self, window: Window) -> Iterator[None]:
        result = yield
        wait_for(window.engine)
        self.timed.windows.append(time.perf_counter() - self._window_started)
        if self._keeps:
            with self.hooks.inside(*HARNESS):
                self._keep(window)
        return result

    def _keep(self, window: Window) -> None:
        self._latents.append(window.video_latents.detach().float().cpu().clone())
        name = "output_frames" if "output_frames" in window else "frames"
        if name in window:
            self._pictures.append(to_bytes(window[name][0, :, window.span.keep]))
