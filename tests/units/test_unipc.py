"""UniPC: the numbers of diffusers' scheduler as Wan uses it, its order, and frames that are held fixed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.units import Euler, Transformer, UniPC
from tests.scenes import Scene, fake_engine, request

Field = Callable[[Tensor, float], Tensor]


class Flow(PipelineUnit):
    """Answers with the velocity of a field, and keeps what every step starts and ends with."""

    name = "flow"

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field
        self.noise = torch.empty(0)
        self.sigmas: list[float] = []
        self.latents: list[Tensor] = []

    @hookimpl
    def begin_window(self, window: Window) -> None:
        self.noise = window.latents

    @hookimpl
    def guide(self, step: Step) -> Tensor:
        self.sigmas.append(float(step.sigma))
        return self.field(step.window.latents, float(step.sigma))

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.latents.append(step.window.latents)


def run(sampler: PipelineUnit, field: Field, *more: PipelineUnit) -> Flow:
    flow = Flow(field)
    fake_engine([Scene(frames=5), flow, sampler, Transformer(), *more]).generate(request())
    return flow


def curved(latents: Tensor, sigma: float) -> Tensor:
    return torch.tanh(2 * latents) * (1 + sigma) - 0.5 * torch.sin(3 * latents + sigma)


@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (2, 5.0), (3, 1.0), (10, 3.0), (25, 5.0)])
def test_the_numbers_of_diffusers(steps: int, shift: float) -> None:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    flow = run(UniPC(steps=steps, shift=shift), curved)
    reference = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2, solver_type="bh2"
    )
    reference.set_timesteps(steps)
    reference.sigmas = torch.tensor([*flow.sigmas, 0.0])  # its own begin a little higher than those of Wan
    reference.timesteps = reference.sigmas[:-1] * 1000
    latents = flow.noise
    for index, (timestep, sigma) in enumerate(zip(reference.timesteps, reference.sigmas, strict=False)):
        latents = reference.step(curved(latents, float(sigma)), timestep, latents).prev_sample
        torch.testing.assert_close(flow.latents[index], latents, atol=2e-5, rtol=2e-5)


def test_a_straight_flow_is_solved_exactly() -> None:
    """Where the network always sees the same clean video, every step lands on the line from the noise to it."""
    clean = torch.full((1, 4, 2, 2, 2), 0.3)
    flow = run(UniPC(steps=5), lambda latents, sigma: (latents - clean) / sigma)
    for sigma, latents in zip(flow.sigmas[1:], flow.latents, strict=False):
        start = flow.sigmas[0]
        expected = clean * (1 - sigma) + (flow.noise - (1 - start) * clean) / start * sigma
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(flow.latents[-1], clean, atol=1e-6, rtol=0)


def test_half_the_steps_of_euler_are_nearer_to_the_solution() -> None:
    exact = run(Euler(steps=1000, shift=3.0), gentle).latents[-1]
    errors = {
        sampler.name: float((run(sampler, gentle).latents[-1] - exact).abs().max())
        for sampler in (UniPC(steps=10, shift=3.0), Euler(steps=20, shift=3.0))
    }
    assert errors["unipc"] < errors["euler"]


def gentle(latents: Tensor, sigma: float) -> Tensor:
    return latents - torch.tanh(latents * (1 - sigma))


class Held(PipelineUnit):
    """Writes noise of its own over the first frame before every step, and something else at the end."""

    name = "held"

    @hookimpl
    def before_step(self, step: Step) -> None:
        step.window.latents[:, :, 0] = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(step.index))


def test_frames_that_are_written_over_leave_the_others_alone() -> None:
    free, held = (run(UniPC(steps=6), curved, *more).latents[-1] for more in ((), (Held(),)))
    torch.testing.assert_close(held[:, :, 1:], free[:, :, 1:], atol=0, rtol=0)
    assert not held[:, :, 0].equal(free[:, :, 0])


def test_nothing_is_left_in_the_window() -> None:
    scene = Scene(frames=5)
    fake_engine([scene, Flow(curved), UniPC(steps=3), Transformer()]).generate(request())
    assert "unipc.past" not in scene.windows[0]


def test_the_first_level_is_just_below_pure_noise() -> None:
    assert run(UniPC(steps=4, shift=1.0), curved).sigmas == pytest.approx([0.999 * part / 4 for part in (4, 3, 2, 1)])
    assert math.isfinite(float(run(UniPC(steps=1), curved).latents[-1].sum()))


def test_it_stands_in_place_of_euler(catalog: Catalog) -> None:
    build_plan("default-euler+unipc(steps=10)", catalog)
    with pytest.raises(PlanError, match="units 'euler' and 'unipc' are both samplers"):
        build_plan("default+unipc", catalog)
