"""Video to video: footage under noise of the first level, over windows, and beside frames that are held fixed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from omniavatar.checkpoints import Bundle
from omniavatar.engine.draft import Draft
from omniavatar.engine.engine import Engine
from omniavatar.engine.flow_match import add_noise, steps_along
from omniavatar.engine.plan import Catalog
from omniavatar.engine.scopes import Job, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import InputError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.clip import Clip
from omniavatar.testing import FakeVAE
from omniavatar.units import Euler, FixedFrames, Guidance, Schedule, Transformer, VaeDecode, VideoToVideo
from tests.scenes import SIZE, Scene, denoising_units, fake_engine, request, tiny_engine

FPS = 25


class Starts(PipelineUnit):
    """Keeps the latents with which windows begin, and the noise that would have been there."""

    name = "starts"

    def __init__(self) -> None:
        super().__init__()
        self.latents: list[Tensor] = []
        self.noise: list[Tensor] = []
        self.sigmas: list[float] = []

    @hookimpl(tryfirst=True)
    def before_step(self, step: Step) -> None:
        if not step.is_first:
            return
        window = step.window
        self.latents.append(window.latents.clone())
        self.noise.append(window.loop.noise(window.index, window.span))
        self.sigmas.append(float(window.steps[0].sigma))


def clip(frames: int, size: int = SIZE, level: int = 0) -> Clip:
    """Every frame of another grey."""
    greys = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 9 + level
    return Clip(np.broadcast_to(greys, (frames, size, size, 3)).copy(), Fraction(FPS))


def made(frames: int = 13, *, footage: Any = None, strength: float = 0.6, **inputs: Any) -> tuple[Scene, Starts]:
    """A video in windows of 9 frames that share 5."""
    scene, starts = Scene(frames=frames), Starts()
    units = [scene, VideoToVideo(), FixedFrames(window_frames=9, overlap=5), Guidance(scale=1)]
    solving = [Schedule(steps=3, strength=strength), Euler(), Transformer(), VaeDecode(), starts]
    asked = request(inputs={"video": footage or clip(frames), **inputs}, fps=FPS)
    fake_engine([*units, *solving]).generate(asked)
    return scene, starts


def encoded(frames: np.ndarray) -> Tensor:
    """What the fake VAE makes of frames (t h w 3) uint8."""
    pictures = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255 * 2 - 1
    return FakeVAE().encode(pictures)


def test_windows_begin_with_their_part_of_the_footage_under_noise_of_the_first_level() -> None:
    footage = clip(13)
    scene, starts = made(footage=footage)
    assert [(window.span.start, window.span.stop) for window in scene.windows] == [(0, 9), (4, 13)]
    first = Schedule(steps=3, strength=0.6).levels()[0]
    assert starts.sigmas == [first, first]
    for index, (start, stop) in enumerate([(0, 9), (4, 13)]):
        expected = add_noise(encoded(footage.frames[start:stop]), starts.noise[index], first)
        torch.testing.assert_close(starts.latents[index], expected, atol=1e-5, rtol=0)


def test_frames_that_are_taken_over_stay_those_of_the_window_before() -> None:
    scene, _ = made()
    assert scene.windows[1]["given_latents"] is not None
    given = scene.windows[1]["given_latents"]
    torch.testing.assert_close(scene.windows[1].latents[:, :, : given.shape[2]], given, atol=0, rtol=0)


def test_less_strength_keeps_more() -> None:
    def distance(strength: float) -> float:
        _, starts = made(strength=strength)
        clean = encoded(clip(13).frames[:9])
        return float((starts.latents[0] - clean).abs().mean())

    assert distance(0.05) < distance(0.3) < distance(0.8)


def test_other_footage_makes_another_video_and_strength_1_the_same() -> None:
    def video(strength: float, level: int) -> Tensor:
        scene, _ = made(footage=clip(13, level=level), strength=strength)
        return torch.cat([window.latents for window in scene.windows], dim=2)

    assert not torch.equal(video(0.6, 0), video(0.6, 90))
    torch.testing.assert_close(video(1.0, 0), video(1.0, 90), atol=1e-6, rtol=0)


def test_a_short_footage_ends_in_its_last_picture(caplog: pytest.LogCaptureFixture) -> None:
    footage = clip(6)
    _, starts = made(frames=9, footage=footage)
    frames = footage.frames[[0, 1, 2, 3, 4, 5, 5, 5, 5]]
    expected = add_noise(encoded(frames), starts.noise[0], starts.sigmas[0])
    torch.testing.assert_close(starts.latents[0], expected, atol=1e-5, rtol=0)
    assert "6 frames at 25 a second, and the video 9" in caplog.text


def test_without_sound_the_footage_sets_the_length_and_without_a_picture_the_size() -> None:
    seen: list[tuple[int, tuple[int, int]]] = []

    class Look(PipelineUnit):
        name = "look"

        @hookimpl
        def plan_windows(self, job: Job) -> None:
            seen.append((job.length, job.size))

    units = [
        Scene(),
        VideoToVideo(),
        Look(),
        Guidance(scale=1),
        Schedule(steps=1, strength=0.5),
        Euler(),
        Transformer(),
    ]
    fake_engine([*units, VaeDecode()]).generate(Request({"video": clip(7, size=64)}, fps=FPS))
    assert seen == [(7, (64, 64))]


def test_a_large_footage_is_made_smaller() -> None:
    engine = fake_engine([VideoToVideo(pixels=64 * 64), *denoising_units()])
    draft = Draft(engine, engine.plan, Request({"video": clip(3, size=256)}))
    draft.settle(engine.hooks_of(engine.plan))
    assert (draft.height, draft.width, draft.has_length) == (64, 64, True)


def refused(units: list[PipelineUnit], **inputs: Any) -> str:
    with pytest.raises((PlanError, InputError)) as caught:
        fake_engine(units).generate(request(seconds=0.2, inputs=inputs))
    return str(caught.value)


def test_strength_without_footage_is_refused_before_the_first_step() -> None:
    units = [Guidance(scale=1), Schedule(strength=0.5), Euler(), Transformer()]
    assert refused(units) == (
        "schedule.strength is 0.5, which starts from given footage, and no unit of the plan brings any; "
        "add +video-to-video, or leave the strength at 1"
    )


def test_footage_is_required_and_looked_at(tmp_path: Path) -> None:
    units = [VideoToVideo(), *denoising_units()]
    assert refused(units) == "unit 'video-to-video': 'video' is required"
    (tmp_path / "x.mp4").write_text("no video")
    assert "is not a media file that ffmpeg can read" in refused(units, video=tmp_path / "x.mp4")


def test_pictures_in_front_of_the_video_are_refused() -> None:
    class Reference(PipelineUnit):
        name = "reference"

        @hookimpl
        def check_request(self, draft: Draft) -> None:
            draft.leading += 2

    message = refused([VideoToVideo(), Reference(), *denoising_units()], video=clip(5))
    assert message.startswith("video-to-video starts from footage of the video alone, and other units put 2 pictures")


@pytest.mark.slow
def test_it_works_with_a_reference_image_and_other_solvers(catalog: Catalog, tiny_models: Bundle) -> None:
    portrait = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for solver in ("euler", "unipc", "dpmpp-2m", "lcm"):
        plan = f"default-write-video-euler+{solver}+video-to-video"
        engine: Engine = tiny_engine(tiny_models, catalog, plan)
        schedule = next(unit for unit in engine.plan.units if unit.name == "schedule")
        assert schedule.settings.strength == 0.8, "what the unit suggests"
        frames = []
        for level in (0, 90):
            inputs = {"image": portrait, "video": clip(13, size=32, level=level), "prompt": "x"}
            with engine.start(Request(inputs, seconds=13 / FPS, fps=FPS)) as begun:
                frames.append(np.concatenate([chunk.frames for chunk in begun]))
        assert frames[0].shape == (13, 32, 32, 3)
        assert not np.array_equal(frames[0], frames[1])


class OwnSchedule(PipelineUnit):
    """Two steps from a level of its own."""

    name = "own-schedule"

    def __init__(self, first: float) -> None:
        super().__init__()
        self.first = first

    @hookimpl
    def plan_steps(self, window: Window) -> list[Step]:
        return steps_along(window, [self.first, 0.3, 0.0])


def test_any_schedule_starts_from_the_footage(caplog: pytest.LogCaptureFixture) -> None:
    for first in (0.5, 1.0):
        starts = Starts()
        units = [Scene(frames=9), VideoToVideo(), Guidance(scale=1), OwnSchedule(first), Euler(), Transformer()]
        fake_engine([*units, VaeDecode(), starts]).generate(request(inputs={"video": clip(9)}, fps=FPS))
        expected = add_noise(encoded(clip(9).frames), starts.noise[0], first)
        torch.testing.assert_close(starts.latents[0], expected, atol=1e-5, rtol=0)
        assert ("leaves nothing of the footage" in caplog.text) == (first == 1)


def test_the_footage_sets_a_size_that_the_networks_can_make() -> None:
    """Of what its sides are multiples comes from the networks."""
    footage = Clip(np.zeros((9, 40, 40, 3), dtype=np.uint8), Fraction(FPS))
    units = [VideoToVideo(pixels=40 * 40), Guidance(scale=1), Schedule(steps=2, strength=0.5), Euler(), Transformer()]
    scene = Scene(frames=9)
    fake_engine([scene, *units, VaeDecode()]).generate(Request({"video": footage}, fps=FPS))
    assert any(side % 2 for side in scene.windows[0].latents.shape[-2:]), "what Wan 2.1 could not make"
