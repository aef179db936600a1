"""Guidance: which branches run, and how their velocities are combined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Branch, Step
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.units import Euler, Guidance, Schedule, Transformer
from tests.scenes import Scene, fake_engine, request

TEXTS: dict[str, Any] = {"positive": 0.5, "no_audio": 0.25, "negative": -1.0}
LAYERS = 4


class Look:
    """Keeps the latents, the branches and the guided velocity of every step."""

    def __init__(self) -> None:
        self.branches: list[list[Branch]] = []
        self.steps: list[tuple[Tensor, Tensor]] = []

    @hookimpl
    def before_step(self, step: Step) -> None:
        self.latents = step.window.latents

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> None:
        self.branches.append(list(branches))

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.steps.append((self.latents, step.velocity))


def run(**settings: Any) -> tuple[Look, int]:
    look = Look()
    units = [Scene(frames=5, **TEXTS), Guidance(**settings), Schedule(steps=3), Euler(), Transformer()]
    engine = fake_engine(units, observers=[look])
    engine.generate(request())
    return look, engine.model("dit").calls


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"scale": 1}, ["positive"]),
        ({"scale": 4.5}, ["positive", "negative"]),
        ({"scale": 4.5, "audio_scale": 4.5}, ["positive", "negative"]),
        ({"scale": 4.5, "audio_scale": 3}, ["positive", "no-audio", "negative"]),
        ({"scale": 1, "audio_scale": 3}, ["positive", "no-audio"]),
        ({"scale": 4.5, "audio_scale": 0}, ["no-audio", "negative"]),
        ({"scale": 0}, ["negative"]),
    ],
)
def test_only_branches_that_count_are_called(settings: dict[str, float], names: list[str]) -> None:
    look, calls = run(**settings)
    assert [[branch.name for branch in branches] for branches in look.branches] == [names] * 3
    assert calls == 3 * len(names)


@pytest.mark.parametrize(
    ("scale", "audio_scale"), [(1, None), (4.5, None), (4.5, 3.0), (2.0, 6.0), (1, 3.0), (0, None)]
)
def test_the_formula(scale: float, audio_scale: float | None) -> None:
    """v = n + scale (a - n) + audio_scale (p - a), each of p, a, n being latents + 4 * its text."""
    look, _ = run(scale=scale, audio_scale=audio_scale)
    sound = scale if audio_scale is None else audio_scale
    for latents, velocity in look.steps:
        p, a, n = (latents + LAYERS * TEXTS[name] for name in ("positive", "no_audio", "negative"))
        torch.testing.assert_close(velocity, n + scale * (a - n) + sound * (p - a), atol=1e-5, rtol=0)


def test_what_the_branches_drop() -> None:
    look, _ = run(scale=4.5, audio_scale=3)
    dropped = {branch.name: (branch.drops("text"), branch.drops("audio")) for branch in look.branches[0]}
    assert dropped == {"positive": (False, False), "no-audio": (False, True), "negative": (True, True)}
    assert look.branches[0][2].drops("anything that a plugin brings")


def test_branches_live_through_all_steps_of_a_window() -> None:
    look, _ = run(scale=4.5)
    assert len({id(branch) for branches in look.branches for branch in branches}) == 2


def test_settings_are_checked(catalog: Catalog) -> None:
    with pytest.raises(PlanError, match="unit 'guidance': scale = -1: input should be greater than or equal to 0"):
        build_plan("guidance(scale=-1)", catalog)
