"""UniPC: the numbers of diffusers' scheduler as Wan uses it, its order, and frames that are held fixed."""

from __future__ import annotations

import math

import pytest
import torch

from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.errors import PlanError
from omniavatar.units import Euler, Schedule, Transformer, UniPC
from tests.scenes import Scene, fake_engine, request
from tests.units.flows import Flow, Held, curved, gentle, run


def wan(steps: int, shift: float = 5.0) -> Schedule:
    """The schedule that UniPC suggests."""
    return Schedule(steps=steps, shift=shift, sigma_max=UniPC.suggests["schedule"]["sigma_max"])


@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (2, 5.0), (3, 1.0), (10, 3.0), (25, 5.0)])
def test_the_numbers_of_diffusers(steps: int, shift: float) -> None:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    flow = run(wan(steps, shift), UniPC(), curved)
    reference = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2, solver_type="bh2"
    )
    reference.set_timesteps(steps)
    own = Schedule(steps=steps, shift=shift, sigma_min=0.001).levels()
    torch.testing.assert_close(torch.tensor(own), reference.sigmas.float(), atol=2e-6, rtol=0)
    reference.sigmas = torch.tensor([*flow.sigmas, 0.0])  # its own begin a little higher than those of Wan
    reference.timesteps = reference.sigmas[:-1] * 1000
    latents = flow.noise
    for index, (timestep, sigma) in enumerate(zip(reference.timesteps, reference.sigmas, strict=False)):
        latents = reference.step(curved(latents, float(sigma)), timestep, latents).prev_sample
        torch.testing.assert_close(flow.latents[index], latents, atol=2e-5, rtol=2e-5)


def test_a_straight_flow_is_solved_exactly() -> None:
    """Where the network always sees the same clean video, every step lands on the line from the noise to it."""
    clean = torch.full((1, 4, 2, 2, 2), 0.3)
    flow = run(wan(5), UniPC(), lambda latents, sigma: (latents - clean) / sigma)
    for sigma, latents in zip(flow.sigmas[1:], flow.latents, strict=False):
        start = flow.sigmas[0]
        expected = clean * (1 - sigma) + (flow.noise - (1 - start) * clean) / start * sigma
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(flow.latents[-1], clean, atol=1e-6, rtol=0)


def test_half_the_steps_of_euler_are_nearer_to_the_solution() -> None:
    exact = run(Schedule(steps=1000, shift=3.0), Euler(), gentle).latents[-1]
    ours = run(wan(10, shift=3.0), UniPC(), gentle).latents[-1]
    euler = run(Schedule(steps=20, shift=3.0), Euler(), gentle).latents[-1]
    assert (ours - exact).abs().max() < (euler - exact).abs().max()


def test_frames_that_are_written_over_leave_the_others_alone() -> None:
    free, held = (run(wan(6), UniPC(), curved, *more).latents[-1] for more in ((), (Held(),)))
    torch.testing.assert_close(held[:, :, 1:], free[:, :, 1:], atol=0, rtol=0)
    assert not held[:, :, 0].equal(free[:, :, 0])


def test_nothing_is_left_in_the_window() -> None:
    scene = Scene(frames=5)
    fake_engine([scene, Flow(curved), wan(3), UniPC(), Transformer()]).generate(request())
    assert "unipc.past" not in scene.windows[0]


def test_it_suggests_a_start_just_below_pure_noise() -> None:
    expected = [0.999 * part / 4 for part in (4, 3, 2, 1)]
    assert run(wan(4, shift=1.0), UniPC(), curved).sigmas == pytest.approx(expected)


@pytest.mark.parametrize("sigmas", [(1.0,), (1.0, 0.5), (1.0, 0.9, 0.4, 0.1)])
def test_it_starts_from_pure_noise_too(sigmas: tuple[float, ...]) -> None:
    flow, nearly = (run(Schedule(sigmas=(start, *sigmas[1:])), UniPC(), gentle) for start in (1.0, 1 - 1e-7))
    assert math.isfinite(float(flow.latents[-1].sum()))
    torch.testing.assert_close(flow.latents[-1], nearly.latents[-1], atol=5e-2, rtol=0)


def test_it_stands_in_place_of_euler(catalog: Catalog) -> None:
    plan = build_plan("default+unipc", catalog)
    assert plan.names == build_plan("default-euler+unipc", catalog).names
    assert "euler" not in plan
    with pytest.raises(PlanError, match="units 'unipc' and 'euler' are both solvers; leave one out with -unipc"):
        build_plan("default+unipc+euler", catalog)
