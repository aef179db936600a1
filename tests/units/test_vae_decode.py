"""Decoding: frames in [0, 1], in the type of the networks, by tiles if it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from omniavatar.engine.loop import to_bytes
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Job, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.tiling import DECODE_TILING
from omniavatar.models.wan_vae import WanVAE
from omniavatar.testing import FakeVAE
from omniavatar.units import VaeDecode
from tests.scenes import Scene, bare_job, denoising_units, fake_engine, fake_models, request


class Listening(FakeVAE):
    """Keeps how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.options: dict[str, Any] = {}
        self.dtype = torch.float64

    def decode(self, latents: Tensor, **options: object) -> Tensor:
        self.options, self.dtype = options, latents.dtype
        return super().decode(latents)

    def decode_frames(self, latents: Tensor, latents_per_pass: int = 1) -> Iterator[Tensor]:
        yield from super().decode_frames(latents, latents_per_pass)
        self.options, self.dtype = {"latents_per_pass": latents_per_pass}, latents.dtype


def groups(vae: FakeVAE, dtype: torch.dtype = torch.float32, **settings: Any) -> list[Tensor]:
    """The groups of frames of a window of three latent frames."""
    engine = fake_engine([], models=fake_models(vae=vae), dtype=dtype)
    window = Window(bare_job(engine), 0, Span(0, 9, 0, 0, 9))
    window.latents = torch.tensor([-3.0, 0.0, 0.5]).view(1, 1, 3, 1, 1).expand(1, 4, 3, 2, 2)
    return list(VaeDecode(**settings).decode_latents(window))


def decoded(vae: FakeVAE, dtype: torch.dtype = torch.float32, **settings: Any) -> Tensor:
    """All of them (1 3 t h w)."""
    return torch.cat(groups(vae, dtype, **settings), dim=2)


def test_frames_lie_between_0_and_1() -> None:
    frames = decoded(FakeVAE())
    assert frames.shape == (1, 3, 9, 16, 16)
    assert frames[0, 0, :, 0, 0].tolist() == [0.0, 0.5, 0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 0.75]


def test_the_vae_gets_its_own_type_and_frames_are_float32() -> None:
    vae = Listening()
    assert decoded(vae, torch.bfloat16).dtype == torch.float32
    assert vae.dtype == torch.bfloat16


def test_settings_reach_the_vae() -> None:
    vae = Listening()
    decoded(vae)
    assert vae.options == {"latents_per_pass": 4}
    decoded(vae, tiled=True, latents_per_pass=2)
    assert vae.options == {"tiling": DECODE_TILING, "latents_per_pass": 2}


def test_frames_come_in_groups_as_the_vae_makes_them() -> None:
    assert [group.shape[2] for group in groups(FakeVAE(), latents_per_pass=1)] == [1, 4, 4]
    assert [group.shape[2] for group in groups(FakeVAE(), latents_per_pass=4)] == [1, 8]
    assert decoded(FakeVAE(), latents_per_pass=1).equal(decoded(FakeVAE(), tiled=True))


def test_a_group_is_decoded_when_it_is_asked_for() -> None:
    made: list[int] = []

    class Counting(FakeVAE):
        def decode_frames(self, latents: Tensor, latents_per_pass: int = 1) -> Iterator[Tensor]:
            for index, frames in enumerate(super().decode_frames(latents, latents_per_pass)):
                made.append(index)
                yield frames

    units = [Scene(frames=9), *denoising_units()[1:-1], VaeDecode(latents_per_pass=1)]
    engine = fake_engine(units, models=fake_models(vae=Counting()))
    with engine.start(request()) as run:
        for number, group in enumerate(run.groups()):
            assert made == list(range(number + 1))
            assert group.start == (0, 1, 5)[number]
    assert made == [0, 1, 2]


def test_settings_are_checked(catalog: Catalog) -> None:
    with pytest.raises(PlanError, match="unit 'vae-decode': latents_per_pass = 0"):
        build_plan("vae-decode(latents_per_pass=0)", catalog)


def test_what_takes_less_memory() -> None:
    remedies = [
        dict(VaeDecode(**settings).smaller("decode", None))
        for settings in ({}, {"latents_per_pass": 1}, {"tiled": True}, {"tiled": True, "latents_per_pass": 1})
    ]
    assert remedies == [{"latents_per_pass": 1}, {"tiled": True}, {"latents_per_pass": 1}, {}]


class Blocks(Scene):
    """Windows of three latent frames, each going on in the latents of the one before."""

    @hookimpl
    def plan_windows(self, job: Job) -> list[Span]:
        bounds = [0, 9, 21, 33]
        return [Span(a, b, 0, a, b, first_latent=(a + 3) // 4) for a, b in pairwise(bounds)]


@pytest.mark.parametrize("settings", [{}, {"tiled": True}, {"latents_per_pass": 1}])
def test_where_latents_go_on_the_decoder_keeps_its_past(settings: dict[str, Any]) -> None:
    """The frames are those of all latents decoded at once, also for a run that goes on from a state."""
    seen: list[Tensor] = []

    class Watch(PipelineUnit):
        name = "watch"

        @hookimpl(tryfirst=True)
        def decode_latents(self, window: Window) -> None:
            seen.append(window.video_latents.clone())

    torch.manual_seed(0)
    vae = small_vae()
    units = [Blocks(frames=33), *denoising_units()[1:-1], Watch(), VaeDecode(**settings)]
    engine = fake_engine(units, models=fake_models(vae=vae))
    with engine.start(request()) as run:
        frames, states = [], []
        for chunk in run:
            frames.append(chunk.frames)
            states.append(run.state())
    assert [len(part) for part in frames] == [9, 12, 12]
    whole = vae.decode(torch.cat(seen, dim=2), DECODE_TILING if settings.get("tiled") else None)
    expected = to_bytes((whole + 1) / 2)
    assert np.abs(np.concatenate(frames).astype(int) - expected).max() <= 1
    with engine.start(request(), resume=states[1]) as run:
        (last,) = run
    assert np.array_equal(last.frames, frames[2])
    with engine.start(request()) as run:
        assert np.array_equal(next(iter(run)).frames, frames[0]), "a new video has no past"


def small_vae() -> WanVAE:
    return WanVAE(
        dim=4,
        z_dim=4,
        dim_mult=(1, 1, 1, 1),
        num_res_blocks=1,
        attn_scales=(),
        temporal_downsample=(False, True, True),
        latent_mean=[0.0] * 4,
        latent_std=[1.0] * 4,
    ).requires_grad_(False)
