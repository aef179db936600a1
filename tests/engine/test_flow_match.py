"""Flow matching: the shifted schedule, noising, target and training weights."""

from __future__ import annotations

import pytest
import torch

from omniavatar.engine.flow_match import add_noise, shifted_sigmas, training_weights, velocity_target


def test_the_schedule_by_hand() -> None:
    expected = [1.0, 5 * 0.75 / (1 + 4 * 0.75), 5 * 0.5 / (1 + 4 * 0.5), 5 * 0.25 / (1 + 4 * 0.25)]
    torch.testing.assert_close(shifted_sigmas(4, 5.0), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(shifted_sigmas(4, 1.0), torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_levels_fall_from_the_strength_and_stay_above_zero(steps: int) -> None:
    sigmas = shifted_sigmas(steps, 5.0)
    assert len(sigmas) == steps
    assert sigmas[0] == 1
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] > 0
    assert shifted_sigmas(steps, 1.0, strength=0.6)[0] == pytest.approx(0.6)


def test_the_end_is_a_level_only_on_demand() -> None:
    sigmas = shifted_sigmas(5, 3.0, sigma_min=0.01, end_included=True)
    assert sigmas[-1] == pytest.approx(3 * 0.01 / (1 + 2 * 0.01))
    assert sigmas[0] == 1


def test_the_velocity_leads_from_noise_to_the_clean_latents() -> None:
    clean, noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3)
    noisy = add_noise(clean, noise, 0.3)
    torch.testing.assert_close(noisy - 0.3 * velocity_target(clean, noise), clean)


def test_training_weights_are_a_bell_of_mean_one() -> None:
    sigmas = shifted_sigmas(1000, 5.0)
    weights = training_weights(sigmas)
    assert weights.mean() == pytest.approx(1)
    assert weights.min() == 0
    assert abs(float(sigmas[weights.argmax()]) - 0.5) < 0.01
