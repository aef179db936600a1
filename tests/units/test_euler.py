"""The sampler: the steps of a window and what one of them does."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from omniavatar.engine.flow_match import shifted_sigmas
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Step, Window
from omniavatar.engine.windows import Span
from omniavatar.errors import PlanError
from omniavatar.units import Euler
from tests.scenes import bare_job


@pytest.fixture
def window() -> Window:
    return Window(bare_job(), 0, Span(0, 5, 0, 0, 5))


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_steps_follow_each_other_down_to_zero(window: Window, steps: int) -> None:
    window.steps = planned = Euler(steps=steps).plan_steps(window)
    assert [step.index for step in planned] == list(range(steps))
    assert [step.sigma for step in planned] == shifted_sigmas(steps, 5.0).tolist()
    assert all(step.sigma_next == following.sigma for step, following in pairwise(planned))
    assert planned[-1].sigma_next == 0
    assert [step.timestep for step in planned] == [step.sigma * 1000 for step in planned]
    assert [step.is_first for step in planned] == [True] + [False] * (steps - 1)
    assert [step.is_last for step in planned] == [False] * (steps - 1) + [True]


def test_a_step_moves_along_the_velocity(window: Window) -> None:
    window.latents = torch.tensor([1.0, 2.0])
    step = Step(window, 0, 800.0, sigma=0.8, sigma_next=0.5)
    step.velocity = torch.tensor([10.0, -10.0])
    torch.testing.assert_close(Euler().advance(step), torch.tensor([-2.0, 5.0]))
    assert window.latents.tolist() == [1.0, 2.0], "the engine sets them"


def test_a_true_velocity_leads_to_the_clean_latents(window: Window) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 8, generator=generator)
    window.latents, sampler = noise, Euler(steps=7)
    for step in sampler.plan_steps(window):
        step.velocity = noise - clean
        window.latents = sampler.advance(step)
    torch.testing.assert_close(window.latents, clean, atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", ["steps=0", "steps=1001", "shift=0"])
def test_settings_are_checked(settings: str, catalog: Catalog) -> None:
    with pytest.raises(PlanError, match="unit 'euler': "):
        build_plan(f"euler({settings})", catalog)
