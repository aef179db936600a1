"""CFG-Zero*: the published formula for two branches, ours for three, and steps that stand still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.engine.scopes import Branch, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.units import CfgMerge, CfgZeroStar, Euler, Guidance, Schedule, Transformer
from omniavatar.units.cfg_zero_star import fitted
from tests.scenes import Scene, fake_engine, request

TEXTS: dict[str, Any] = {"positive": 0.5, "no_audio": 0.25, "negative": -1.0}


class Look:
    """Keeps what every step starts with and the velocity that guidance makes."""

    def __init__(self) -> None:
        self.calls = 0
        self.steps: list[tuple[Tensor, Tensor]] = []

    @hookimpl
    def before_step(self, step: Step) -> None:
        self.latents = step.window.latents

    @hookimpl
    def embed(self) -> None:
        self.calls += 1

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.steps.append((self.latents, step.velocity))


def run(*units: PipelineUnit, steps: int = 3, **guidance: Any) -> Look:
    look = Look()
    plan = [Scene(frames=5, **TEXTS), Guidance(**guidance), Schedule(steps=steps), Euler(), Transformer(), *units]
    fake_engine(plan, observers=[look]).generate(request())
    return look


def predictions(latents: Tensor) -> dict[str, Tensor]:
    """The fake network's: latents + 4 times the text."""
    return {name: latents + 4 * value for name, value in TEXTS.items()}


def nearest(velocity: Tensor, best: Tensor) -> Tensor:
    """The multiple of `velocity` that is nearest to `best`, by least squares."""
    scale = torch.linalg.lstsq(velocity.reshape(-1, 1).double(), best.reshape(-1, 1).double()).solution
    fitted_one: Tensor = velocity * float(scale)
    return fitted_one


def test_the_formula_for_two() -> None:
    look = run(CfgZeroStar(zero_share=0), scale=4.5)
    for latents, velocity in look.steps:
        p, n = (predictions(latents)[name] for name in ("positive", "negative"))
        scaled = n * ((p * n).sum() / (n * n).sum())
        torch.testing.assert_close(velocity, scaled + 4.5 * (p - scaled), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(scaled, nearest(n, p), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("scale", "audio_scale"), [(4.5, 3.0), (4.5, 4.4999), (1.0, 3.0), (4.5, 0.0)])
def test_the_formula_for_three(scale: float, audio_scale: float) -> None:
    """Both weaker predictions are fitted to the strongest that takes part, so that equal scales give that for two."""
    look = run(CfgZeroStar(zero_share=0), scale=scale, audio_scale=audio_scale)
    for latents, velocity in look.steps:
        p, a, n = (predictions(latents)[name] for name in ("positive", "no_audio", "negative"))
        best = a if audio_scale == 0 else p
        a, n = (best if weaker is best else nearest(weaker, best) for weaker in (a, n))
        expected = n + scale * (a - n) + audio_scale * (p - a)
        torch.testing.assert_close(velocity, expected, atol=2e-4, rtol=1e-4)


def test_almost_equal_scales_are_almost_one() -> None:
    one, two = run(CfgZeroStar(), scale=4.5), run(CfgZeroStar(), scale=4.5, audio_scale=4.50001)
    torch.testing.assert_close(one.steps[-1][1], two.steps[-1][1], atol=1e-3, rtol=1e-3)


def test_every_sample_has_a_scale_of_its_own() -> None:
    best = torch.randn(2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    both = fitted(best * torch.tensor([2.0, -0.5]).view(-1, 1, 1, 1, 1), best)
    torch.testing.assert_close(both, best)
    assert fitted(torch.zeros_like(best), best).equal(torch.zeros_like(best))


@pytest.mark.parametrize(("steps", "share", "zero"), [(50, 0.04, 2), (25, 0.04, 1), (10, 0.04, 0), (4, 0.5, 2)])
def test_the_first_steps_stand_still_and_make_no_calls(steps: int, share: float, zero: int) -> None:
    look = run(CfgZeroStar(zero_share=share), steps=steps, scale=4.5)
    assert [bool(velocity.any()) for _, velocity in look.steps] == [False] * zero + [True] * (steps - zero)
    assert look.calls == 2 * (steps - zero)


def test_switched_off_it_changes_nothing() -> None:
    off, plain = run(CfgZeroStar(optimized_scale=False, zero_share=0), scale=4.5), run(scale=4.5)
    assert all(one.equal(other) for (_, one), (_, other) in zip(off.steps, plain.steps, strict=True))


def test_without_guidance_there_is_nothing_to_scale() -> None:
    one, plain = run(CfgZeroStar(zero_share=0), scale=1), run(scale=1)
    assert one.steps[-1][1].equal(plain.steps[-1][1])


class Apart(PipelineUnit):
    """Asks for the branches one by one, as ranks do that share them."""

    name = "apart"

    @hookimpl(tryfirst=True)
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor] | None:
        return None if len(branches) == 1 else [step.predict([branch])[0] for branch in branches]


@pytest.mark.parametrize("other", [CfgMerge, Apart])
def test_however_branches_run(other: type[PipelineUnit]) -> None:
    expected = run(CfgZeroStar(zero_share=0.4), scale=4.5, audio_scale=3.0)
    for units in ([CfgZeroStar(zero_share=0.4), other()], [other(), CfgZeroStar(zero_share=0.4)]):
        look = run(*units, scale=4.5, audio_scale=3.0)
        torch.testing.assert_close(look.steps[-1][1], expected.steps[-1][1], atol=1e-5, rtol=1e-5)
