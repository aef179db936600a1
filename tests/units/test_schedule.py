"""The schedule: the levels of a window's steps, with every solver that follows it, and the first of these, euler."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from omniavatar.engine.flow_match import shifted_sigmas
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Step, Window
from omniavatar.engine.windows import Span
from omniavatar.errors import PlanError
from omniavatar.units import Euler, Schedule
from tests.scenes import bare_job
from tests.units.flows import curved, run


@pytest.fixture
def window() -> Window:
    return Window(bare_job(), 0, Span(0, 5, 0, 0, 5))


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_steps_follow_each_other_down_to_zero(window: Window, steps: int) -> None:
    window.steps = planned = Schedule(steps=steps).plan_steps(window)
    assert [step.index for step in planned] == list(range(steps))
    assert [step.sigma for step in planned] == shifted_sigmas(steps, 5.0).tolist()
    assert all(step.sigma_next == following.sigma for step, following in pairwise(planned))
    assert planned[-1].sigma_next == 0
    assert [step.timestep for step in planned] == [float(step.sigma) * 1000 for step in planned]
    assert [step.is_first for step in planned] == [True] + [False] * (steps - 1)
    assert [step.is_last for step in planned] == [False] * (steps - 1) + [True]


@pytest.mark.parametrize(
    ("settings", "levels"),
    [
        ({"sigmas": (1.0, 0.5)}, [1.0, 0.5, 0.0]),
        ({"sigmas": (0.9, 0.0)}, [0.9, 0.0]),
        ({"timesteps": (1000, 757, 522)}, [1.0, 0.757, 0.522, 0.0]),
        ({"timesteps": (1000, 750, 500, 250), "warp": True}, [1.0, 0.9375, 5 / 6, 0.625, 0.0]),
        ({"timesteps": (1000, 500, 0), "warp": True, "shift": 8.0}, [1.0, 8 / 9, 0.0]),
        ({"steps": 4, "shift": 1.0, "strength": 0.5}, [0.5, 0.375, 0.25, 0.125, 0.0]),
        ({"steps": 2, "shift": 1.0, "sigma_max": 0.8, "strength": 0.5}, [0.4, 0.2, 0.0]),
        ({"sigmas": (1.0, 0.8, 0.6, 0.4), "strength": 0.5}, [0.6, 0.4, 0.0]),
        ({"sigmas": (1.0, 0.8, 0.6, 0.4), "strength": 0.01}, [0.4, 0.0]),
        ({"sigmas": (1.0, 0.8, 0.6, 0.4), "steps": 9}, [1.0, 0.8, 0.6, 0.4, 0.0]),
    ],
)
def test_levels(settings: dict[str, Any], levels: list[float]) -> None:
    assert Schedule(**settings).levels() == pytest.approx(levels)


@pytest.mark.parametrize("steps", [2, 3, 10, 40])
@pytest.mark.parametrize(
    ("spacing", "flag"), [("diffusers", {}), ("karras", "use_karras_sigmas"), ("exponential", "use_exponential_sigmas")]
)
def test_spacings_are_those_of_diffusers(spacing: str, flag: str, steps: int) -> None:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    reference = FlowMatchEulerDiscreteScheduler(shift=3.0, **({flag: True} if flag else {}))
    reference.set_timesteps(steps)
    levels = torch.tensor(Schedule(steps=steps, shift=3.0, spacing=spacing).levels())
    torch.testing.assert_close(levels, reference.sigmas.float(), atol=2e-6, rtol=0)


def test_one_step_of_any_spacing_starts_from_noise() -> None:
    for spacing in ("uniform", "diffusers", "karras", "exponential"):
        assert Schedule(steps=1, spacing=spacing).levels() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ("steps=0", "steps = 0: input should be greater than or equal to 1"),
        ("steps=1001", "steps = 1001: input should be less than or equal to 1000"),
        ("shift=0", "shift = 0: input should be greater than 0"),
        ("strength=0", "strength = 0: input should be greater than 0"),
        ("strength=1.1", "strength = 1.1: input should be less than or equal to 1"),
        ("sigmas=[0.5, 0.5]", "levels must descend, and 0.5 follows 0.5"),
        ("sigmas=[1.5]", "sigmas.0 = 1.5: input should be less than or equal to 1"),
        ("sigmas=[1, -0.5]", "sigmas.1 = -0.5: input should be greater than or equal to 0"),
        ("sigmas=[]", "the list needs a level above 0"),
        ("timesteps=[0]", "the list needs a level above 0"),
        ("timesteps=[1001]", "timesteps.0 = 1001: input should be less than or equal to 1000"),
        ("timesteps=[250, 500]", "levels must descend, and 500 follows 250"),
        ("timesteps=1000", "timesteps = 1000: input should be a valid tuple"),
        ("sigmas=[1], timesteps=[1000]", "sigmas and timesteps both give the levels; leave one of them out"),
        ("sigma_min=0.5, sigma_max=0.4", "sigma_min 0.5 is not below sigma_max 0.4"),
        ("warp=true", "warp is for the levels of a list, and neither sigmas nor timesteps give one"),
    ],
)
def test_settings_are_checked(settings: str, fault: str, catalog: Catalog) -> None:
    with pytest.raises(PlanError) as caught:
        build_plan(f"schedule({settings})", catalog)
    assert "unit 'schedule': " in str(caught.value)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_levels_are_refused(catalog: Catalog) -> None:
    levels = [1000 - index / 2 for index in range(1001)]
    with pytest.raises(PlanError, match="1001 levels are too many; up to 1000 are possible"):
        build_plan(f"schedule(timesteps={levels})", catalog)


# Euler ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (4, 5.0), (12, 1.0)])
def test_euler_has_the_numbers_of_diffusers(steps: int, shift: float) -> None:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    flow = run(Schedule(steps=steps, shift=shift), Euler(), curved)
    reference = FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(sigmas=[1 - index / steps for index in range(steps)])
    torch.testing.assert_close(torch.tensor(flow.sigmas), reference.sigmas[:-1].float(), atol=2e-6, rtol=0)
    latents = flow.noise
    for index, timestep in enumerate(reference.timesteps):
        latents = reference.step(curved(latents, flow.sigmas[index]), timestep, latents).prev_sample
        torch.testing.assert_close(flow.latents[index], latents, atol=2e-5, rtol=2e-5)


def test_a_step_moves_along_the_velocity(window: Window) -> None:
    window.latents = torch.tensor([1.0, 2.0])
    step = Step(window, 0, 800.0, sigma=0.8, sigma_next=0.5)
    step.velocity = torch.tensor([10.0, -10.0])
    torch.testing.assert_close(Euler().advance(step), torch.tensor([-2.0, 5.0]))
    assert window.latents.tolist() == [1.0, 2.0], "the engine sets them"


def test_a_true_velocity_leads_to_the_clean_latents(window: Window) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 8, generator=generator)
    window.latents = noise
    for step in Schedule(steps=7).plan_steps(window):
        step.velocity = noise - clean
        window.latents = Euler().advance(step)
    torch.testing.assert_close(window.latents, clean, atol=1e-6, rtol=0)
