"""DPM++ 2M: the numbers of diffusers' scheduler, its order, and frames that are held fixed."""

from __future__ import annotations

import pytest
import torch

from omniavatar.units import DpmSolverMultistep, Euler, Schedule, Transformer
from tests.scenes import Scene, fake_engine, request
from tests.units.flows import Flow, Held, curved, gentle, run


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers and numpy 2
@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (2, 5.0), (3, 1.0), (10, 3.0), (25, 5.0)])
def test_the_numbers_of_diffusers(steps: int, shift: float) -> None:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    flow = run(Schedule(steps=steps, shift=shift, sigma_max=0.999), DpmSolverMultistep(), curved)
    reference = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        lower_order_final=False,
    )
    reference.set_timesteps(steps)
    torch.testing.assert_close(torch.tensor(flow.sigmas), reference.sigmas[:-1].float(), atol=2e-6, rtol=0)
    latents = flow.noise
    for index, (timestep, sigma) in enumerate(zip(reference.timesteps, reference.sigmas, strict=False)):
        latents = reference.step(curved(latents, float(sigma)), timestep, latents).prev_sample
        torch.testing.assert_close(flow.latents[index], latents, atol=2e-5, rtol=2e-5)


def test_pure_noise_is_a_start() -> None:
    """As published with Wan: the first step from pure noise is one of first order."""
    flow = run(Schedule(sigmas=(1.0, 0.8, 0.3)), DpmSolverMultistep(), gentle)
    first = flow.noise - gentle(flow.noise, 1.0)
    torch.testing.assert_close(flow.latents[0], 0.8 * flow.noise + 0.2 * first, atol=1e-6, rtol=0)
    assert flow.latents[-1].isfinite().all()


def test_half_the_steps_of_euler_are_nearer_to_the_solution() -> None:
    exact = run(Schedule(steps=1000, shift=3.0), Euler(), gentle).latents[-1]
    ours = run(Schedule(steps=10, shift=3.0), DpmSolverMultistep(), gentle).latents[-1]
    euler = run(Schedule(steps=20, shift=3.0), Euler(), gentle).latents[-1]
    assert (ours - exact).abs().max() < (euler - exact).abs().max()


def test_frames_that_are_written_over_leave_the_others_alone() -> None:
    free, held = (run(Schedule(steps=6), DpmSolverMultistep(), curved, *more).latents[-1] for more in ((), (Held(),)))
    torch.testing.assert_close(held[:, :, 1:], free[:, :, 1:], atol=0, rtol=0)
    assert not held[:, :, 0].equal(free[:, :, 0])


def test_nothing_is_left_in_the_window() -> None:
    scene = Scene(frames=5)
    units = [scene, Flow(curved), Schedule(steps=3), DpmSolverMultistep(), Transformer()]
    fake_engine(units).generate(request())
    assert "dpmpp-2m.past" not in scene.windows[0]
