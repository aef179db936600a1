"""TeaCache: which steps are skipped, that skipping saves the blocks and is exact where the blocks do the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.checkpoints import Bundle
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Forward, Request
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import FakeDiT
from omniavatar.units import Guidance, TeaCache, teacache
from omniavatar.units.teacache import decide, polynomial, relative_changes
from tests.scenes import (
    Scene,
    SecondExpert,
    denoising_units,
    fake_engine,
    fake_models,
    recorded,
    request,
    tiny_engine,
    video_of,
)

TEXTS: dict[str, Any] = {"positive": 0.03, "no_audio": 0.02, "negative": -0.01}


class Look:
    """Notes for every transformer call whether its blocks ran."""

    def __init__(self) -> None:
        self.computed: dict[str, list[bool]] = {}

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.name = forward.branches[0].name
        self.computed.setdefault(self.name, []).append(False)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        self.computed[self.name][-1] = True


def run(*units: Any, steps: int = 8, frames: int = 13, audio_scale: float | None = None) -> tuple[Scene, Look, Any]:
    """A job of the fake networks, whose blocks add the same at every step, so that skipping them is exact."""
    second = {role: unit.network for unit in units if isinstance(unit, SecondExpert) for role in unit.experts[1:]}
    scene, look, models = Scene(frames=frames, **TEXTS), Look(), fake_models(**second)
    windows, _, *others = denoising_units(steps=steps)
    plan = [scene, windows, Guidance(scale=3.0, audio_scale=audio_scale), *others, *units]
    fake_engine(plan, models=models, observers=[look]).generate(request())
    return scene, look, models.networks["dit"]


def test_skipping_saves_the_blocks_and_uses_what_they_added() -> None:
    plain, _, plain_dit = run()
    cached, look, dit = run(TeaCache(threshold=0.5))
    (schedule,) = cached.windows[0]["teacache.schedules"].values()
    skips = schedule.skips
    assert 2 <= sum(skips) <= 6
    assert dit.calls == plain_dit.calls == 2 * 2 * 8
    computed = 2 * 2 * (8 - sum(skips))
    assert [block.calls for block in dit.blocks] == [computed] * 4
    assert [block.calls for block in plain_dit.blocks] == [2 * 2 * 8] * 4
    torch.testing.assert_close(video_of(cached), video_of(plain), atol=1e-6, rtol=0)
    assert look.computed["positive"][:8] == [not skip for skip in skips]


@pytest.mark.parametrize("audio_scale", [None, 1.5])
def test_all_branches_skip_the_same_steps_in_every_window(audio_scale: float | None) -> None:
    _, look, _ = run(TeaCache(threshold=0.5), audio_scale=audio_scale)
    patterns = [tuple(calls[start : start + 8]) for calls in look.computed.values() for start in (0, 8)]
    assert len(patterns) == 2 * (2 if audio_scale is None else 3)
    assert len(set(patterns)) == 1
    assert False in patterns[0]


def test_the_schedule_is_made_once_a_window_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def noted(modulations: Any) -> list[float]:
        events.append("schedule")
        return relative_changes(modulations)

    class Steps(PipelineUnit):
        name = "steps"

        @hookimpl(tryfirst=True)
        def before_step(self) -> None:
            events.append("step")

    monkeypatch.setattr(teacache, "relative_changes", noted)
    run(TeaCache(threshold=0.5), Steps(), audio_scale=1.5)
    assert events == ["schedule", *["step"] * 8] * 2


def test_the_first_and_the_last_step_are_always_computed() -> None:
    _, look, _ = run(TeaCache(threshold=10), frames=5)
    assert look.computed["positive"] == [True, *[False] * 6, True]


def test_a_threshold_that_nothing_stays_below_changes_nothing(
    tiny_models: Bundle, catalog: Catalog, portrait: Path, speech: Path
) -> None:
    videos: dict[str, Tensor] = {}
    for expression in ("default", "default+teacache(threshold=1e-9)", "default+teacache(threshold=5)"):
        engine = tiny_engine(tiny_models, catalog, f"{expression}-write-video", schedule={"steps": 4})
        (window,) = recorded(engine, Request(inputs={"image": portrait, "audio": speech}, seconds=0.24))
        videos[expression] = window["frames"]
    off, computed, skipped = videos.values()
    assert computed.equal(off)
    assert not skipped.equal(off)


def test_decisions_by_hand() -> None:
    """Sums 0.3, 0.6 (computed), 0.2, 0.5 (not below 0.5: computed), then the last."""
    settings = TeaCache(threshold=0.5, coefficients=(1.0, 0.0)).settings
    schedule = decide([0.0, 0.3, 0.3, 0.2, 0.3, 0.0], settings)
    assert schedule.skips == (False, True, False, True, False, False)
    assert schedule.sums == pytest.approx((0, 0.3, 0, 0.2, 0, 0))


def test_the_polynomial_maps_the_changes() -> None:
    assert polynomial((2.0, -1.0, 3.0), 2.0) == 2 * 4 - 2 + 3
    doubled = TeaCache(threshold=0.5, coefficients=(2.0, 0.0)).settings
    assert decide([0.0, 0.2, 0.2, 0.0], doubled).skips == (False, True, False, False)


def test_a_negative_polynomial_counts_as_0_unless_it_is_told_otherwise() -> None:
    """The published polynomials fall below 0 for large changes, after which nothing would ever be computed again."""
    changes = [0.0, 0.2, 0.05, 0.05, 0.0]
    falling = (-100.0, 10.0, 0.0)  # -2 at 0.2, 0.25 at 0.05
    assert decide(changes, TeaCache(threshold=0.4, coefficients=falling).settings).skips == (
        False,
        True,
        True,
        False,
        False,
    )
    unclamped = TeaCache(threshold=0.4, coefficients=falling, clamp=False).settings
    assert decide(changes, unclamped).skips == (False, True, True, True, False)


def test_relative_changes() -> None:
    changes = relative_changes([torch.tensor([1.0, -1.0]), torch.tensor([1.5, -0.5]), torch.tensor([1.5, -0.5])])
    assert changes == [0.0, 0.5, 0.0]


def test_one_step_is_computed() -> None:
    _, look, _ = run(TeaCache(threshold=10), steps=1, frames=5)
    assert look.computed["positive"] == [True]


@pytest.mark.parametrize("settings", ["threshold=0", "threshold=11", "coefficients=[]"])
def test_settings_are_checked(settings: str, catalog: Catalog) -> None:
    with pytest.raises(PlanError, match="unit 'teacache': "):
        build_plan(f"teacache({settings})", catalog)


def test_a_second_network_has_a_schedule_of_its_own() -> None:
    second = FakeDiT()
    _, look, first = run(SecondExpert(second), TeaCache(threshold=10), frames=5)
    assert look.computed["positive"] == [True, False, False, True] * 2
    assert (first.calls, second.calls) == (8, 8)
