"""The schedule: the levels of a window's steps, with every solver that follows it, and the first of these, euler."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from omniavatar.engine.flow_match import shifted_sigmas
from omniavatar.engine.plan import Catalog, Plan, build_plan, with_settings
from omniavatar.engine.scopes import Step, Window
from omniavatar.engine.settings import Layer, Strength
from omniavatar.engine.windows import Span
from omniavatar.errors import PlanError
from omniavatar.units import Euler, Schedule
from tests.scenes import Scene, bare_job, denoising_units, fake_engine, request
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
        ({"sigmas": (1.0, 0.8, 0.6, 0.4), "strength": 0.9}, [0.8, 0.6, 0.4, 0.0]),
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
        ("timesteps=1000", "timesteps = 1000: give a list: [1000]"),
        ("sigmas=[1], timesteps=[1000]", "sigmas says all levels, and timesteps says them too; leave one of them out"),
        ("sigmas=[1, 0.5], steps=7", "sigmas says all levels, and steps says them too; leave one of them out"),
        ("timesteps=[900], spacing=karras", "timesteps says all levels, and spacing says them too"),
        ("sigmas=[1, 0.5], sigma_min=0.1", "sigmas says all levels, and sigma_min says them too"),
        ("spacing=karras, sigma_max=0.9", "sigma_max is for uniform levels and spacing is karras; leave one out"),
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


LISTED = {"timesteps": [1000, 750, 500, 250]}


def levels_of(plan: Plan) -> list[float]:
    (unit,) = (unit for unit in plan.units if isinstance(unit, Schedule))
    return unit.levels()


@pytest.mark.parametrize(
    ("weaker", "stronger", "expected"),
    [
        ({"steps": 25, "shift": 3}, LISTED, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ({"steps": 25, "spacing": "karras"}, {"sigmas": [0.5]}, [0.5, 0.0]),
        (LISTED | {"warp": True, "shift": 1}, {"steps": 2}, [1.0, 0.5, 0.0]),
        (LISTED, {"sigmas": [0.6, 0.3]}, [0.6, 0.3, 0.0]),
        ({"sigma_max": 0.8, "sigma_min": 0.1}, {"spacing": "karras", "steps": 1}, [1.0, 0.0]),
        ({"strength": 0.5}, {"sigmas": [0.6, 0.4, 0.2, 0.1]}, [0.6, 0.4, 0.2, 0.1, 0.0]),
        ({"sigmas": [0.6, 0.4, 0.2, 0.1]}, {"strength": 0.5}, [0.2, 0.1, 0.0]),
    ],
)
def test_what_a_stronger_source_says_of_the_levels_replaces_the_rest(
    weaker: dict[str, Any], stronger: dict[str, Any], expected: list[float], catalog: Catalog
) -> None:
    """A checkpoint's steps do not count beside a list of the user's, nor its list beside the user's steps."""
    layers = [
        Layer(Strength.CHECKPOINT, "checkpoint x", {"schedule": weaker}),
        Layer(Strength.EXPLICIT, "settings", {"schedule": stronger}),
    ]
    plan = build_plan("schedule", catalog, *layers)
    assert levels_of(plan) == pytest.approx(expected)
    assert set(plan.origins["schedule"].values()) == {"default", "settings"} | (
        {"checkpoint x"} if {"shift", "sigmas"} & {*weaker} else set()
    )
    earlier = build_plan("schedule", catalog, layers[0])
    assert levels_of(with_settings(earlier, {"schedule": stronger})) == pytest.approx(expected)


def test_a_suggested_strength_counts_with_the_list_of_a_checkpoint_only(catalog: Catalog) -> None:
    row = Layer(Strength.CHECKPOINT, "checkpoint few", {"schedule": LISTED})
    user = Layer(Strength.FILE, "file x.yaml", {"schedule": LISTED})
    starting = "schedule+video-to-video"
    assert levels_of(build_plan(starting, catalog, row)) == [0.75, 0.5, 0.25, 0.0]
    assert levels_of(build_plan(starting, catalog, user)) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_beginning_below_pure_noise_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for sigmas in ((0.95, 0.5), (0.3, 0.1)):
        units = [unit for unit in denoising_units()[1:] if unit.name != "schedule"]
        fake_engine([Scene(frames=5), *units, Schedule(sigmas=sigmas)]).generate(request())
        assert ("begins at the noise level 0.3" in caplog.text) == (sigmas[0] == 0.3)


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
