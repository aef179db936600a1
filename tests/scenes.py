"""Small videos for tests: what stands in for inputs, and engines over fake networks or the test networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniavatar.checkpoints import Bundle
from omniavatar.engine.engine import Engine
from omniavatar.engine.loop import Loop
from omniavatar.engine.outline import Length
from omniavatar.engine.plan import Catalog, Plan, build_plan
from omniavatar.engine.scopes import Branch, Forward, Job, Request, Window
from omniavatar.engine.scopes import Frames as DecodedFrames
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import FakeAudioAdapter, FakeAudioEncoder, FakeDiT, FakeVAE, GivenModels, recorder
from omniavatar.testing.recorder import SeenWindow, WindowRecorder
from omniavatar.units import Euler, FixedFrames, Guidance, Schedule, Transformer, VaeDecode

SIZE = 16
TINY_SETTINGS: dict[str, dict[str, Any]] = {
    "reference-image": {"sizes": [[32, 32]]},
    "fixed-frames": {"window_frames": 9, "overlap": 5},
    "schedule": {"steps": 2},
}


class Scene(PipelineUnit):
    """Gives a video its length and its text, and keeps the windows to look at.

    `texts` are the contexts of a branch with text and of one without; a branch named in `by_branch` has its own.
    """

    name = "scene"

    def __init__(self, frames: int | None = None, texts: tuple[float, float] = (1.0, -1.0), **by_branch: float) -> None:
        super().__init__()
        self.frames = frames
        self.texts = texts
        self.by_branch = by_branch
        self.recorder = WindowRecorder()

    @property
    def windows(self) -> list[SeenWindow]:
        """The windows of the last video, as they were when they ended."""
        return self.recorder.windows

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self.recorder.begin_job(job)

    @hookimpl
    def plan_length(self) -> Length | None:
        return None if self.frames is None else Length(self.frames)

    @hookimpl(tryfirst=True)
    def begin_window(self, window: Window) -> None:
        self.recorder.begin_window(window)

    @hookimpl(tryfirst=True, specname="postprocess_frames")
    def see_decoded(self, frames: DecodedFrames) -> None:
        self.recorder.see_decoded(frames)

    @hookimpl(trylast=True)
    def postprocess_frames(self, frames: DecodedFrames) -> None:
        self.recorder.postprocess_frames(frames)

    @hookimpl
    def output_frames(self, frames: np.ndarray) -> None:
        self.recorder.output_frames(frames)

    @hookimpl(trylast=True)
    def end_window(self, window: Window) -> None:
        self.recorder.end_window(window)

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.conditions["text"] = forward.stacked(self.context).to(forward.x.dtype)

    def context(self, branch: Branch) -> Tensor:
        """(1 1 1)."""
        value = self.by_branch.get(branch.name.replace("-", "_"), self.texts[branch.drops("text")])
        return torch.full((1, 1, 1), value)


class SecondExpert(PipelineUnit):
    """From step 4 on another network denoises, `network` as the model of the role dit2."""

    name = "second-expert"
    experts = ("dit", "dit2")

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @hookimpl
    def begin_window(self, window: Window) -> None:
        for step in window.steps[4:]:
            step.expert = "dit2"


class Frames(WindowRecorder):
    """Keeps what the windows of all videos show."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    @hookimpl(trylast=True)
    def end_window(self, window: Window) -> None:
        super().end_window(window)
        self.seen.append(self.windows[-1]["frames"])


def fake_models(**networks: Any) -> GivenModels:
    """Fake networks for all roles but the text encoder."""
    fakes: dict[str, Any] = {
        "dit": FakeDiT,
        "vae": FakeVAE,
        "audio_encoder": FakeAudioEncoder,
        "audio_adapter": FakeAudioAdapter,
    }
    return GivenModels(**{**{role: fake() for role, fake in fakes.items() if role not in networks}, **networks})


def denoising_units(steps: int = 2, scale: float = 1.0) -> list[PipelineUnit]:
    """Windows of 9 frames that share 5, guidance, sampler, transformer and decoder."""
    return [
        FixedFrames(window_frames=9, overlap=5),
        Guidance(scale=scale),
        Schedule(steps=steps),
        Euler(),
        Transformer(),
        VaeDecode(),
    ]


def fake_engine(units: Iterable[PipelineUnit], *, models: GivenModels | None = None, **options: Any) -> Engine:
    """An engine over fake networks."""
    return Engine(Plan(tuple(units)), models or fake_models(), **options)


def request(seconds: float | None = None, **changes: Any) -> Request:
    """A request for a small video."""
    return Request(**{"inputs": {}, "height": SIZE, "width": SIZE, "seconds": seconds, **changes})


def bare_job(engine: Engine | None = None, asked: Request | None = None) -> Job:
    """The job of a video that has not begun."""
    engine = engine or fake_engine([])
    return Loop(engine, engine.plan, asked or request()).job


def recorded(engine: Engine, asked: Request) -> list[SeenWindow]:
    """The windows of a video, as they were when they ended."""
    watch = WindowRecorder()
    engine.generate(asked, observers=[watch])
    return watch.windows


def tiny_engine(
    models: Bundle, catalog: Catalog, expression: str, *, observers: Iterable[Any] = (), **settings: Any
) -> Engine:
    """An engine over the test networks: 32x32 pixels, windows of 9 frames, 2 steps, unless `settings` say otherwise."""
    plan = build_plan(expression, catalog, models.settings(), TINY_SETTINGS, settings)
    return Engine(plan, models, observers=observers)


def video_of(scene: Scene) -> Tensor:
    """All kept frames of a job's windows (1 3 t h w)."""
    return recorder.video_of(scene.windows)
