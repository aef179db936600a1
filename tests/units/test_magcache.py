"""MagCache: the published decisions, checkpoints without ratios, and what is shown beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omniavatar.checkpoints import Registry
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.errors import CheckpointError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import FakeDiT
from omniavatar.units import MagCache, Schedule
from omniavatar.units.magcache import decide, nearest
from tests.scenes import Scene, SecondExpert, bare_job, denoising_units, fake_engine, fake_models, request, video_of

RATIOS = {row.name: row.settings["magcache"]["ratios"] for row in Registry.builtin().rows if "magcache" in row.settings}
WAN_14B = tuple(RATIOS["Wan2.1-T2V-14B"])


def published(ratios: np.ndarray, threshold: float, most: int, retention: float) -> list[bool]:
    """The paper's algorithm, a step at a time as a sampling loop would go through it."""
    count, skips = len(ratios), []
    product, error, steps = 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        skip = False
        if step >= int(count * retention):
            product, steps = product * ratio, steps + 1
            error += abs(1 - product)
            skip = error < threshold and steps <= most
        if not skip:
            product, error, steps = 1.0, 0.0, 0
        skips.append(skip)
    return skips


@pytest.mark.parametrize("count", [50, 37, 25, 8])
@pytest.mark.parametrize(
    ("threshold", "most", "retention"), [(0.12, 2, 0.2), (0.12, 4, 0.2), (0.06, 2, 0.5), (3, 99, 0.1)]
)
def test_decisions_are_those_of_the_paper(count: int, threshold: float, most: int, retention: float) -> None:
    unit = MagCache(threshold=threshold, max_skips=most, retention=retention, ratios=WAN_14B)
    places = np.round(np.arange(count) * (len(WAN_14B) - 1) / (count - 1)).astype(int)
    ratios = np.array(WAN_14B)[places]
    assert nearest(WAN_14B, count) == list(ratios)
    skips = decide(ratios.tolist(), int(count * retention), unit.settings).skips
    expected = published(ratios, threshold, most, retention)
    assert list(skips) == [skip and index > 0 for index, skip in enumerate(expected)]
    assert 0 < sum(skips) < count


def test_ratios_are_taken_from_the_nearest_step() -> None:
    assert nearest([1.0, 2.0, 3.0], 5) == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert nearest([1.0, 2.0, 3.0, 4.0], 2) == [1.0, 4.0]
    assert nearest([1.0, 2.0], 1) == [2.0]
    assert nearest([0.9], 3) == [0.9, 0.9, 0.9]


def test_published_ratios_begin_with_1_and_are_of_50_steps() -> None:
    assert {"Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B"} <= RATIOS.keys()
    assert {(len(ratios), ratios[0]) for ratios in RATIOS.values()} == {(50, 1.0)}
    assert all(0.8 < ratio < 1.03 for ratios in RATIOS.values() for ratio in ratios)


def run(*units: PipelineUnit, steps: int = 8) -> tuple[Scene, Any]:
    second = {role: unit.network for unit in units if isinstance(unit, SecondExpert) for role in unit.experts[1:]}
    scene, models = Scene(frames=13, positive=0.03, negative=-0.01), fake_models(**second)
    fake_engine([scene, *denoising_units(steps=steps, scale=3.0), *units], models=models).generate(request())
    return scene, models.networks["dit"]


def test_blocks_of_skipped_steps_do_not_run() -> None:
    """The fake blocks add the same at every step, so that skipping them is exact."""
    scene, dit = run(MagCache(ratios=(1.0,), retention=0.25, max_skips=3))
    assert scene.windows[0]["magcache.schedules"]["dit"].skips == (False, False, *[True] * 3, False, True, True)
    assert dit.blocks[0].calls == 2 * 2 * 3
    np.testing.assert_allclose(video_of(scene), video_of(run()[0]), atol=1e-6)


def test_a_second_network_begins_with_a_computed_step() -> None:
    second = FakeDiT()
    scene, _ = run(SecondExpert(second), MagCache(ratios=(1.0,), retention=0.0, max_skips=9))
    first, other = scene.windows[0]["magcache.schedules"].values()
    assert first.skips == other.skips == (False, True, True, True)
    assert second.blocks[0].calls == 2 * 2


def test_what_is_foreseen_for_two_networks() -> None:
    unit = MagCache(ratios=(1.0,), retention=0.0, max_skips=2)
    networks = {"dit": FakeDiT(), "dit2": FakeDiT()}
    engine = fake_engine([unit], models=fake_models(**networks))
    window = Window(bare_job(engine), 0, Span(0, 5, 0, 0, 5))
    window.steps = Schedule(steps=9).plan_steps(window)
    for step in window.steps[5:]:
        step.expert = "dit2"
    assert list(unit.forecast(window)) == [
        "dit: 3 of 5 steps skipped; computed: 1, 4",
        "dit2: 2 of 4 steps skipped; computed: 6, 9",
    ]


def test_without_ratios_it_is_refused_before_anything_is_loaded(catalog: Catalog) -> None:
    plan = build_plan("magcache", catalog)
    with pytest.raises(CheckpointError, match="no magnitude ratios for this checkpoint; measure them with 'omni calib"):
        fake_engine(plan.units)


def test_a_threshold_of_0_skips_nothing() -> None:
    scene, _ = run(MagCache(ratios=(1.0,), threshold=0))
    assert not any(scene.windows[0]["magcache.schedules"]["dit"].skips)


@pytest.mark.parametrize("pair", ["teacache+magcache", "magcache+first-block-cache", "first-block-cache+teacache"])
def test_one_cache_is_enough(pair: str, catalog: Catalog) -> None:
    with pytest.raises(PlanError, match="cannot work together: both are caches"):
        build_plan(pair, catalog)


class Comes(PipelineUnit):
    """A guidance rule whose second branch is there in some steps only."""

    name = "comes"

    def __init__(self, steps: set[int]) -> None:
        super().__init__()
        self.steps = steps
        self.computed: list[tuple[int, str]] = []

    @hookimpl
    def guide(self, step: Step) -> Any:
        window = step.window
        branches = [window.branch("positive"), window.branch("other", ["text"])][: 2 if step.index in self.steps else 1]
        return step.predict(branches)[0]

    @hookimpl
    def before_block(self, forward: Any, index: int) -> None:
        if index == 0:
            self.computed.append((forward.step.index, forward.branches[0].name))


def test_a_residual_from_before_a_computed_step_is_not_reused() -> None:
    """Steps 0, 4 and 8 are computed. The other branch misses step 4, so it may not reuse in step 5 what is from 3."""
    rule = Comes({1, 2, 3, 5, 6})
    units = [Scene(frames=5), rule, *denoising_units(steps=9)[2:], MagCache(ratios=(1.0,), retention=0, max_skips=3)]
    fake_engine(units).generate(Request(height=16, width=16))
    assert [step for step, name in rule.computed if name == "positive"] == [0, 4, 8]
    assert [step for step, name in rule.computed if name == "other"] == [1, 5]
