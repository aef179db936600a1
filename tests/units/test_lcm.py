"""LCM: the numbers of diffusers' flow-matching scheduler with the same noise, and noise that is always the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.units import Lcm, Schedule
from tests.units.flows import Held, curved, run


@pytest.mark.parametrize(("timesteps", "shift"), [((1000,), 5.0), ((1000, 750, 500, 250), 5.0), ((1000, 500), 8.0)])
def test_the_numbers_of_diffusers(timesteps: tuple[float, ...], shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.schedulers import scheduling_flow_match_lcm as module

    flow = run(Schedule(timesteps=timesteps, warp=True, shift=shift), Lcm(), curved)
    noises: Iterator[Tensor] = iter(flow.fresh)

    def drawn(*_: Any, **__: Any) -> Tensor:
        return next(noises)

    monkeypatch.setattr(module, "randn_tensor", drawn)
    reference = module.FlowMatchLCMScheduler(shift=shift)
    reference.set_timesteps(sigmas=[time / 1000 for time in timesteps], num_inference_steps=len(timesteps))
    torch.testing.assert_close(torch.tensor([*flow.sigmas, 0.0]), reference.sigmas.float(), atol=1e-6, rtol=0)
    latents = flow.noise
    for index, timestep in enumerate(reference.timesteps):
        sigma = flow.sigmas[index]
        latents = reference.step(curved(latents, sigma), timestep, latents).prev_sample
        torch.testing.assert_close(flow.latents[index], latents, atol=2e-5, rtol=2e-5)


def test_the_last_step_gives_the_clean_video_and_every_step_other_noise() -> None:
    clean = torch.full((1, 4, 2, 2, 2), 0.3)
    flow = run(Schedule(steps=3), Lcm(), lambda latents, sigma: (latents - clean) / sigma)
    torch.testing.assert_close(flow.latents[-1], clean, atol=1e-6, rtol=0)
    for sigma, latents, noise in zip(flow.sigmas[1:], flow.latents, flow.fresh, strict=False):
        torch.testing.assert_close(latents, (1 - sigma) * clean + sigma * noise, atol=1e-5, rtol=0)
    assert not torch.equal(flow.fresh[0], flow.fresh[1])
    assert not torch.equal(flow.fresh[0], flow.noise)


def test_the_same_video_gets_the_same_noise() -> None:
    first, second = (run(Schedule(steps=3), Lcm(), curved).latents[-1] for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_frames_that_are_written_over_leave_the_others_alone() -> None:
    free, held = (run(Schedule(steps=4), Lcm(), curved, *more).latents[-1] for more in ((), (Held(),)))
    torch.testing.assert_close(held[:, :, 1:], free[:, :, 1:], atol=0, rtol=0)
