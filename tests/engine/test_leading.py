"""Latent frames in front of the video's: units that work on the video do not notice them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from omniavatar.checkpoints import Bundle
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, Plan, build_plan
from omniavatar.engine.scopes import Forward, Job, Request, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.hookspecs import hookimpl
from tests.scenes import TINY_SETTINGS

LEADING = 2


class Lead(PipelineUnit):
    """Two frames of its own, and a look at everything."""

    name = "lead"

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[dict[str, Any]] = []
        self.frame_indices: list[list[int]] = []

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job.leading += LEADING

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.frame_indices.append(forward.frame_index.tolist())

    @hookimpl(trylast=True)
    def end_window(self, window: Window) -> None:
        names = ("condition", "given_latents", "frames")
        self.windows.append({"latents": window.latents, **{name: window[name] for name in names}})


@pytest.fixture(scope="module")
def lead(tiny_models: Bundle, catalog: Catalog, portrait: Path, speech: Path) -> Lead:
    lead = Lead()
    plan = build_plan("default-write-video", catalog, tiny_models.settings(), TINY_SETTINGS)
    engine = Engine(Plan((lead, *plan.units)), tiny_models)
    engine.generate(Request(inputs={"image": portrait, "audio": speech}, seconds=0.5))
    return lead


def test_tokens_in_front_belong_to_no_frame(lead: Lead) -> None:
    assert all(indices == [-1] * 2 * 4 + [0] * 4 + [1] * 4 + [2] * 4 for indices in lead.frame_indices)


def test_given_frames_and_pictures_are_those_of_the_video(lead: Lead) -> None:
    assert len(lead.windows) > 1
    for seen in lead.windows:
        given = seen["given_latents"]
        torch.testing.assert_close(seen["latents"][:, :, LEADING : LEADING + given.shape[2]], given)
        assert seen["frames"].shape[2] == 9


def test_their_condition_says_that_nothing_is_given(lead: Lead) -> None:
    condition = lead.windows[0]["condition"]
    assert condition.shape[2] == LEADING + 3
    assert condition[:, :-1, :LEADING].abs().max() == 0
    assert condition[0, -1, :, 0, 0].tolist() == [1, 1, 0, 1, 1]


def test_their_noise_is_what_is_drawn_last(tiny_models: Bundle, catalog: Catalog) -> None:
    engine = Engine(build_plan("default-write-video", catalog, TINY_SETTINGS), tiny_models)
    job = Job(engine, Request(height=32, width=32, seconds=1), {})
    span = Span(0, 9, 1, 0, 9)
    job.leading = LEADING
    noise = engine.noise(job, 0, span)
    drawn = torch.randn(noise.shape, generator=torch.Generator().manual_seed(job.request.seed * 1_000_003))
    assert noise[:, :, :LEADING].equal(drawn[:, :, -LEADING:])
    assert noise[:, :, LEADING:].equal(drawn[:, :, :-LEADING])
