"""Fixed frames: where windows lie, what is given to each, and that it is really held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Forward, Job, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import FakeDiT, FakeVAE
from omniavatar.units import FixedFrames
from tests.scenes import Scene, bare_job, denoising_units, fake_engine, fake_models, request, video_of


class Portrait(PipelineUnit):
    """A latent in place of a picture."""

    name = "portrait"
    provides = ("image_latent",)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job["image_latent"] = torch.full((1, 4, 1, 2, 2), 0.75)


class Look:
    """Keeps what the transformer got and what every step left."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.inputs.append(forward.latents.clone())

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.outputs.append(step.window.latents.clone())


def test_given_latents_stand_in_every_call_and_at_the_end() -> None:
    scene, look = Scene(frames=13, texts=(0.05, 0.0)), Look()
    fake_engine([scene, Portrait(), *denoising_units(steps=3)], observers=[look]).generate(request())
    first, second = scene.windows
    assert first["given_latents"].shape[2] == 1
    assert second["given_latents"].shape[2] == 2
    for index, window in enumerate((first, second)):
        given = window["given_latents"]
        held = slice(0, given.shape[2])
        for latents in look.inputs[3 * index : 3 * index + 3]:
            assert latents[:, :, held].equal(given)
        assert not look.outputs[3 * index][:, :, held].equal(given), "a step moves them, so holding them is work"
        assert window.latents[:, :, held].equal(given)
        assert not window.latents[:, :, given.shape[2] :].equal(look.inputs[3 * index][:, :, given.shape[2] :])


def test_a_window_starts_from_the_last_frames_of_the_one_before() -> None:
    scene = Scene(frames=13, texts=(0.05, 0.0))
    engine = fake_engine([scene, Portrait(), *denoising_units()])
    engine.generate(request())
    first, second = scene.windows
    expected = engine.model("vae").encode(first["frames"][:, :, -5:] * 2 - 1)
    torch.testing.assert_close(second["given_latents"], expected)
    torch.testing.assert_close(second["frames"][:, :, :5], first["frames"][:, :, -5:], atol=1e-6, rtol=0)


def test_without_a_picture_nothing_is_given_to_the_first_window() -> None:
    scene = Scene(frames=13)
    fake_engine([scene, *denoising_units()]).generate(request())
    assert [window.span.given for window in scene.windows] == [0, 5]
    assert scene.windows[0]["given_latents"] is None


@pytest.mark.parametrize("frames", [1, 2, 8, 9, 10, 13, 14, 30])
@pytest.mark.parametrize("full", [False, True])
def test_the_video_has_the_length_asked_for(frames: int, full: bool) -> None:
    scene = Scene(frames=frames)
    _, *others = denoising_units(steps=1)
    units = [scene, FixedFrames(window_frames=9, overlap=5, full_windows=full), *others]
    result = fake_engine(units).generate(request())
    assert result.frames == frames
    assert video_of(scene).shape == (1, 3, frames, 16, 16)
    assert all(window["frames"].shape[2] == window.span.frames for window in scene.windows)
    assert (scene.windows[-1].span.frames == 9) or not full


def long_job(height: int, width: int, spatial_factor: int = 8) -> Job:
    """A video of 300 frames by networks whose tokens stand for 2x2 latents, as those of all Wan models."""
    dit, vae = FakeDiT(), FakeVAE()
    dit.patch_size, vae.spatial_factor = (1, 2, 2), spatial_factor
    job = bare_job(fake_engine([], models=fake_models(dit=dit, vae=vae)), request(height=height, width=width))
    job.frames = 300
    return job


def test_the_length_of_a_window_comes_from_tokens_and_size() -> None:
    job = long_job(400, 720)
    assert FixedFrames().plan_windows(job)[0].frames == 105
    assert FixedFrames(max_tokens=15_000).plan_windows(job)[0].frames == 53
    assert FixedFrames(max_tokens=15_000, window_frames=33).plan_windows(job)[0].frames == 33


def test_a_vae_that_compresses_more_makes_longer_windows_of_as_many_tokens() -> None:
    """121 frames of 1280x704 pixels are 31 x 44 x 80 / 4 tokens of 32x32 pixels."""
    assert FixedFrames(max_tokens=31 * 22 * 40).plan_windows(long_job(704, 1280, spatial_factor=16))[0].frames == 121
    assert FixedFrames(max_tokens=31 * 44 * 80).plan_windows(long_job(704, 1280, spatial_factor=8))[0].frames == 121


def test_a_size_for_which_the_budget_is_too_small_says_what_to_change() -> None:
    job = long_job(720, 1280)
    message = (
        r"size 1280x720 is too large for this model: 12000 tokens hold 13 frames a chunk, 17 are needed; "
        r"use 1120x624 or less, or fixed-frames.max_tokens=22500"
    )
    with pytest.raises(PlanError, match=message):
        FixedFrames(max_tokens=12_000).plan_windows(job)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("max_tokens=1", "unit 'fixed-frames': max_tokens = 1: input should be greater than or equal to 64"),
    ],
)
def test_settings_are_checked(settings: str, message: str, catalog: Catalog) -> None:
    with pytest.raises(PlanError) as caught:
        build_plan(f"vae-decode+fixed-frames({settings})", catalog)
    assert str(caught.value).startswith(message)
