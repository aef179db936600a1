"""What solvers may ask of a step: noise of its own, and the velocity of other latents at another noise level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from omniavatar.engine.progress import Progress
from omniavatar.engine.scopes import Forward, Job, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import FakeDiT
from omniavatar.units import Euler, FixedFrames, Guidance, Schedule, TeaCache, Transformer, VaeDecode
from tests.scenes import Scene, SecondExpert, bare_job, fake_engine, fake_models, request
from tests.units.flows import curved, gentle, run


class Heun(PipelineUnit):
    """Heun's solver of second order: the mean of the velocities at both ends of a step, but for the last one."""

    name = "heun"
    brings = ("schedule",)

    @hookimpl
    def advance(self, step: Step) -> Tensor:
        latents, length = step.window.latents, step.sigma_next - step.sigma
        end = latents + length * step.velocity
        if step.is_last:
            return end
        return latents + length * (step.velocity + step.velocity_at(end, step.sigma_next)) / 2


# Further evaluations --------------------------------------------------------------------------------------------------


def test_a_solver_evaluates_twice_in_a_step() -> None:
    flow = run(Schedule(steps=3), Heun(), curved)
    first, second, third = flow.sigmas
    assert flow.evaluations == [first, second, second, third, third]
    latents = flow.noise
    for index, (sigma, following) in enumerate(pairwise([*flow.sigmas, 0.0])):
        velocity, length = curved(latents, sigma), following - sigma
        end = latents + length * velocity
        latents = latents + length * (velocity + curved(end, following)) / 2 if following else end
        torch.testing.assert_close(flow.latents[index], latents, atol=1e-6, rtol=0)


def test_it_is_of_second_order() -> None:
    exact = run(Schedule(steps=1000, shift=3.0), Euler(), gentle).latents[-1]
    heun = run(Schedule(steps=10, shift=3.0), Heun(), gentle).latents[-1]
    euler = run(Schedule(steps=20, shift=3.0), Euler(), gentle).latents[-1]
    assert (heun - exact).abs().max() < (euler - exact).abs().max()


class Calls(PipelineUnit):
    """Notes what every transformer call and every block of it is about."""

    name = "calls"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int, float]] = []
        self.first_frames: list[Tensor] = []
        self.networks: list[object] = []
        self.computed: list[tuple[int, int]] = []
        self.private: list[bool] = []

    @hookimpl
    def embed(self, forward: Forward) -> None:
        step = forward.step
        self.seen.append((step.index, step.evaluation, float(step.timestep)))
        self.first_frames.append(forward.latents[:, :, 0].clone())
        self.networks.append(forward.network)
        self.private.append("calls.mark" in step)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.computed.append((forward.step.index, forward.step.evaluation))

    @hookimpl
    def begin_window(self, window: Window) -> None:
        for step in window.steps:
            step["calls.mark"] = True


def evaluated(*units: PipelineUnit, steps: int = 3, frames: int = 9, **networks: FakeDiT) -> tuple[Calls, Scene]:
    """A video by Heun's solver, through the hooks of a transformer call."""
    calls, scene = Calls(), Scene(frames=frames)
    plan = [scene, *units, Guidance(scale=1), Schedule(steps=steps), Heun(), Transformer(), calls, VaeDecode()]
    fake_engine(plan, models=fake_models(**networks)).generate(request())
    return calls, scene


def test_hooks_see_the_level_and_the_number_of_an_evaluation() -> None:
    calls, _ = evaluated()
    levels = [level * 1000 for level in Schedule(steps=3).levels()]
    expected = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert [(index, evaluation) for index, evaluation, _ in calls.seen] == expected
    assert [time for *_, time in calls.seen] == pytest.approx([levels[index + one] for index, one in expected])
    assert calls.private == [True] * 5, "values of the step are seen in all of its evaluations"


def test_fixed_frames_are_fixed_in_all_evaluations() -> None:
    calls, _ = evaluated(FixedFrames(window_frames=9, overlap=5), frames=13)
    later = calls.first_frames[5:]
    assert len(later) == 5
    assert all(torch.equal(later[0], frame) for frame in later)
    assert not torch.equal(calls.first_frames[0], calls.first_frames[1]), "of the first window nothing is given"


def test_every_evaluation_asks_the_network_of_its_step() -> None:
    other = FakeDiT()
    calls, _ = evaluated(SecondExpert(other), steps=6, dit2=other)
    assert [network is other for network in calls.networks] == [index >= 4 for index, *_ in calls.seen]


def test_a_cache_skips_all_evaluations_of_a_step_and_reuses_of_each_its_own() -> None:
    calls, cached = evaluated(TeaCache(threshold=10.0), steps=5)
    assert calls.computed == [(0, 0), (0, 1), (4, 0)], "the first and the last step"
    _, careful = evaluated(TeaCache(threshold=1e-9), steps=5)
    _, plain = evaluated(steps=5)
    torch.testing.assert_close(careful.windows[0].latents, plain.windows[0].latents, atol=0, rtol=0)
    assert cached.windows[0].latents.isfinite().all()


def test_the_latents_of_the_window_stay_and_those_given_too() -> None:
    seen: list[Tensor] = []

    class Asking(Heun):
        @hookimpl
        def advance(self, step: Step) -> Tensor:
            latents = step.window.latents
            other = torch.zeros_like(latents)
            step.velocity_at(other, 0.5)
            assert step.window.latents is latents
            seen.append(other)
            with pytest.raises(ZeroDivisionError):
                broken(step)
            assert step.window.latents is latents, "after an error too"
            return latents

    def broken(step: Step) -> None:
        step.loop.hooks.guide = divide  # type: ignore[method-assign]
        try:
            step.velocity_at(torch.ones_like(step.window.latents), 0.5)
        finally:
            del step.loop.hooks.guide

    def divide(step: Step) -> Tensor:
        raise ZeroDivisionError

    held = [FixedFrames(window_frames=9, overlap=5), Guidance(scale=1), Schedule(steps=1), Asking(), Transformer()]
    fake_engine([Scene(frames=13), *held, VaeDecode()]).generate(request())
    assert len(seen) == 2
    assert all(not other.any() for other in seen), "given frames are written over in a copy"


def test_progress_counts_steps_and_all_calls() -> None:
    progress = Progress()
    plan = [Scene(frames=9), Guidance(scale=1), Schedule(steps=3), Heun(), Transformer(), VaeDecode()]
    fake_engine(plan, observers=[progress]).generate(request())
    assert (progress.timings.steps, progress.timings.transformer_calls) == (3, 5)


# Noise ---------------------------------------------------------------------------------------------------------------


def window_of(job: Job, index: int = 0, frames: int = 3) -> Window:
    window = Window(job, index, Span(0, 4 * frames - 3, 0, 0, 4 * frames - 3))
    window.latents = torch.zeros(1, 4, frames, 2, 2, dtype=torch.float64)
    return window


def noises(job: Job, order: Sequence[int] = (0, 1)) -> dict[str, Tensor]:
    """Noise of two windows, two steps and two keys."""
    found: dict[str, Tensor] = {}
    for index in order:
        window = window_of(job, index)
        torch.randn(5)
        for key in ("", "a"):
            found[f"window {index} {key}"] = window.noise(key)
            for number in range(2):
                found[f"window {index} step {number} {key}"] = Step(window, number, 1.0, 0.001, 0.0).noise(key)
    return found


def test_noise_depends_on_seed_window_step_and_key_alone() -> None:
    first, again = noises(bare_job()), noises(bare_job(), order=(1, 0))
    for name, noise in first.items():
        assert noise.shape == (1, 4, 3, 2, 2)
        assert noise.dtype == torch.float32
        assert torch.equal(noise, again[name]), name
    values = list(first.values())
    assert all(not torch.equal(one, other) for index, one in enumerate(values) for other in values[:index])
    reseeded = noises(bare_job(asked=request(seed=7)))
    assert all(not torch.equal(noise, reseeded[name]) for name, noise in first.items())


def test_noise_is_standard_and_unlike_that_of_the_start() -> None:
    job = bare_job()
    window = window_of(job, frames=500)
    noise = window.noise()
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    assert not torch.equal(noise, job.loop.noise(0, window.span))


def test_noise_of_the_videos_frames_is_the_same_behind_leading_ones() -> None:
    job, led = bare_job(), bare_job()
    led.leading = 2
    window = window_of(led, frames=5)
    torch.testing.assert_close(window.noise()[:, :, 2:].flatten(), window.noise().roll(-2, 2)[:, :, :3].flatten())
    assert window_of(job, frames=5).noise().roll(2, 2).equal(window.noise())
