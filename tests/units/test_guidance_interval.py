"""Guidance in an interval: which branches run in which steps, what comes of it, and what it goes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Branch, Forward, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.units import CfgMerge, CfgZeroStar, Euler, Guidance, GuidanceInterval, Schedule, TeaCache, Transformer
from tests.scenes import Scene, fake_engine, request

TEXTS: dict[str, Any] = {"positive": 0.5, "no_audio": 0.25, "negative": -1.0}
SHORT = {"positive": "p", "no-audio": "a", "negative": "n"}


class Look:
    """Keeps the branches that are called in every step, and latents and velocity."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.steps: list[tuple[Tensor, Tensor]] = []

    @hookimpl
    def before_step(self, step: Step) -> None:
        self.latents = step.window.latents
        self.calls.append("")

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.calls[-1] += "".join(SHORT[branch.name] for branch in forward.branches)

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.steps.append((self.latents, step.velocity))


def run(*units: PipelineUnit, **guidance: Any) -> Look:
    """Five steps at noise levels 1, 0.8, 0.6, 0.4, 0.2."""
    look = Look()
    plan = [
        Scene(frames=5, **TEXTS),
        Guidance(**guidance),
        Schedule(steps=5, shift=1.0),
        Euler(),
        Transformer(),
        *units,
    ]
    fake_engine(plan, observers=[look]).generate(request())
    return look


@pytest.mark.parametrize(
    ("settings", "guidance", "calls"),
    [
        ({"low": 0.5}, {}, "pn pn pn p p"),
        ({"low": 0.3, "high": 0.7}, {}, "p p pn pn p"),
        ({"low": 0.4, "high": 0.8}, {}, "p pn pn p p"),
        ({"low": 0.5}, {"audio_scale": 3}, "pan pan pan p p"),
        ({"low": 0.5, "keep_audio": True}, {"audio_scale": 3}, "pan pan pan pa pa"),
        ({"low": 0.5, "keep_audio": True}, {}, "pn pn pn p p"),
        ({"low": 0.5}, {"audio_scale": 0}, "an an an a a"),
        ({"low": 0.5}, {"scale": 1}, "p p p p p"),
        ({"low": 0.0}, {}, "pn pn pn pn pn"),
    ],
)
def test_which_calls_are_made(settings: dict[str, Any], guidance: dict[str, Any], calls: str) -> None:
    assert " ".join(run(GuidanceInterval(**settings), **{"scale": 4.5, **guidance}).calls) == calls


def test_outside_the_scales_are_1() -> None:
    look = run(GuidanceInterval(low=0.5), scale=4.5)
    for (latents, velocity), calls in zip(look.steps, look.calls, strict=True):
        p, n = (latents + 4 * TEXTS[name] for name in ("positive", "negative"))
        expected = p if calls == "p" else n + 4.5 * (p - n)
        torch.testing.assert_close(velocity, expected, atol=2e-5, rtol=1e-5)


def test_the_sound_may_keep_its_scale() -> None:
    look = run(GuidanceInterval(low=0.5, keep_audio=True), scale=4.5, audio_scale=3.0)
    latents, velocity = look.steps[-1]
    p, a = (latents + 4 * TEXTS[name] for name in ("positive", "no_audio"))
    torch.testing.assert_close(velocity, a + 3.0 * (p - a), atol=1e-5, rtol=1e-5)


def test_an_interval_over_all_changes_nothing() -> None:
    for (_, one), (_, other) in zip(run(GuidanceInterval(low=0), scale=4).steps, run(scale=4).steps, strict=True):
        assert one.equal(other)


class Apart(PipelineUnit):
    """Asks for the branches one by one."""

    name = "apart"

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor] | None:
        return None if len(branches) == 1 else [step.predict([branch])[0] for branch in branches]


@pytest.mark.parametrize("other", [CfgMerge, CfgZeroStar, Apart])
def test_the_order_of_units_does_not_matter(other: type[PipelineUnit]) -> None:
    one, two = (run(*units, scale=4.5) for units in ((GuidanceInterval(), other()), (other(), GuidanceInterval())))
    assert one.calls == two.calls
    assert one.calls[-2:] == ["p", "p"]
    torch.testing.assert_close(one.steps[-1][1], two.steps[-1][1], atol=0, rtol=0)


def test_with_zero_star_outside_nothing_is_scaled() -> None:
    look = run(GuidanceInterval(low=0.5), CfgZeroStar(), scale=4.5)
    latents, velocity = look.steps[-1]
    torch.testing.assert_close(velocity, latents + 4 * TEXTS["positive"], atol=2e-5, rtol=1e-5)


class Ran:
    """The steps in which the blocks of a branch ran."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.steps.setdefault(forward.branches[0].name, []).append(forward.step.index)


def test_a_cache_computes_a_branch_that_comes_late() -> None:
    ran = Ran()
    plan = [Scene(frames=5, **TEXTS), Guidance(scale=3), Schedule(steps=8, shift=1.0), Euler(), Transformer()]
    units = [GuidanceInterval(low=0.3, high=0.7), TeaCache(threshold=10)]
    fake_engine([*plan, *units], observers=[ran]).generate(request())
    assert ran.steps == {"positive": [0, 3, 6, 7], "negative": [3]}


def test_refusals(catalog: Catalog) -> None:
    with pytest.raises(PlanError, match=r"'guidance-interval': .*low 0.9 is above high 0.5"):
        build_plan("guidance-interval(low=0.9, high=0.5)", catalog)
    with pytest.raises(PlanError, match="'guidance-interval' and 'guidance-parallel' cannot work together: outside"):
        build_plan("default+guidance-interval+guidance-parallel", catalog)
