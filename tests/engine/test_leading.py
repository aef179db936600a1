"""Latent frames in front of the video's: units that work on the video do not notice them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from omniavatar.checkpoints import Bundle
from omniavatar.engine.engine import Engine
from omniavatar.engine.loop import Loop
from omniavatar.engine.plan import Catalog, Plan, build_plan
from omniavatar.engine.scopes import Forward, Job, Request
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.hookspecs import hookimpl
from omniavatar.testing.recorder import SeenWindow, WindowRecorder
from tests.scenes import TINY_SETTINGS

LEADING = 2


class Lead(PipelineUnit):
    """Two frames of its own, and a look at the tokens of every call."""

    name = "lead"

    def __init__(self) -> None:
        super().__init__()
        self.frame_indices: list[list[int]] = []

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job.leading += LEADING

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.frame_indices.append(forward.frame_index.tolist())


@dataclass(frozen=True)
class Seen:
    """What came of a video: of its transformer calls, and of its windows."""

    frame_indices: list[list[int]]
    windows: list[SeenWindow]


@pytest.fixture(scope="module")
def seen(tiny_models: Bundle, catalog: Catalog, portrait: Path, speech: Path) -> Seen:
    lead, recorder = Lead(), WindowRecorder()
    plan = build_plan("default-write-video", catalog, tiny_models.settings(), TINY_SETTINGS)
    engine = Engine(Plan((lead, *plan.units)), tiny_models)
    engine.generate(Request(inputs={"image": portrait, "audio": speech}, seconds=0.52), observers=[recorder])
    return Seen(lead.frame_indices, recorder.windows)


def test_tokens_in_front_belong_to_no_frame(seen: Seen) -> None:
    assert all(indices == [-1] * 2 * 4 + [0] * 4 + [1] * 4 + [2] * 4 for indices in seen.frame_indices)


def test_given_frames_and_pictures_are_those_of_the_video(seen: Seen) -> None:
    assert len(seen.windows) > 1
    for window in seen.windows:
        given = window["given_latents"]
        torch.testing.assert_close(window.latents[:, :, LEADING : LEADING + given.shape[2]], given)
        assert window["frames"].shape[2] == 9


def test_their_condition_says_that_nothing_is_given(seen: Seen) -> None:
    condition = seen.windows[0]["condition"]
    assert condition.shape[2] == LEADING + 3
    assert condition[:, :-1, :LEADING].abs().max() == 0
    assert condition[0, -1, :, 0, 0].tolist() == [1, 1, 0, 1, 1]


def test_their_noise_is_what_is_drawn_last(tiny_models: Bundle, catalog: Catalog) -> None:
    engine = Engine(build_plan("default-write-video", catalog, TINY_SETTINGS), tiny_models)
    loop = Loop(engine, engine.plan, Request(height=32, width=32, seconds=1.04))
    loop.job.leading = LEADING
    noise = loop.noise(0, Span(0, 9, 1, 0, 9))
    drawn = torch.randn(noise.shape, generator=torch.Generator().manual_seed(loop.job.seed * 1_000_003))
    assert noise[:, :, :LEADING].equal(drawn[:, :, -LEADING:])
    assert noise[:, :, LEADING:].equal(drawn[:, :, :-LEADING])
