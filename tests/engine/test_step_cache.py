"""Caches beside units that act in a range of steps, and what caches keep in memory between the steps."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import pytest
from torch import Tensor

from omniavatar.engine.loop import Loop
from omniavatar.engine.scopes import Forward, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.units import CfgMerge, Euler, FirstBlockCache, Guidance, GuidanceInterval, MagCache, Schedule, TeaCache
from tests.scenes import Scene, denoising_units, fake_engine, request

STEPS = 8
CACHES = {
    "teacache": lambda: TeaCache(threshold=10),
    "magcache": lambda: MagCache(threshold=10, ratios=(1.0,), retention=0.0, max_skips=100),
    "first-block-cache": lambda: FirstBlockCache(threshold=10),
}


class WeakBlocks(PipelineUnit):
    """As a third party would write it: in the steps [start, end) the last block adds half of what it would add."""

    name = "weak-blocks"

    def __init__(self, start: int, end: int) -> None:
        super().__init__()
        self.steps = range(start, end)

    @hookimpl(wrapper=True)
    def plan_steps(self) -> Generator[None, Sequence[Step], Sequence[Step]]:
        steps = yield
        for step in steps:
            if step.index in self.steps:
                step.regimes.add(self.name)
        return steps

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        forward["weak-blocks.before"] = forward.x

    @hookimpl
    def after_block(self, forward: Forward, index: int) -> None:
        if index == len(forward.network.blocks) - 1 and forward.step.index in self.steps:
            forward.x = (forward.x + forward["weak-blocks.before"]) / 2


def latents(*units: PipelineUnit, observers: Sequence[Any] = ()) -> Tensor:
    """What a job of the fake networks ends with, whose blocks add the same in every step."""
    scene = Scene(frames=5, texts=(0.5, -0.25))
    fake_engine([scene, *denoising_units(STEPS, scale=3.0), *units], observers=observers).generate(request())
    return scene.windows[0].latents


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("cache", CACHES)
def test_a_range_of_steps_ends_where_it_ends(cache: str, start: int) -> None:
    ends = range(start + 1, start + 6)
    results = [latents(WeakBlocks(start, end), CACHES[cache]()) for end in ends]
    for end, made in zip(ends, results, strict=True):
        expected = latents(WeakBlocks(start, end))
        assert (made - expected).abs().max() < 1e-5, "the fake blocks add the same in every step of a regime"
    assert all(not one.equal(other) for index, one in enumerate(results) for other in results[:index])


@pytest.mark.parametrize("cache", CACHES)
def test_a_range_of_steps_beside_branches_in_one_batch(cache: str) -> None:
    made = latents(WeakBlocks(2, 5), CfgMerge(), CACHES[cache]())
    assert (made - latents(WeakBlocks(2, 5))).abs().max() < 1e-5


@pytest.mark.parametrize("cache", ["teacache", "magcache"])
def test_the_borders_of_a_range_are_foretold(cache: str) -> None:
    unit = CACHES[cache]()
    engine = fake_engine([unit, WeakBlocks(2, 4), GuidanceInterval(low=0.9), Schedule(steps=STEPS, shift=1.0), Euler()])
    (line,) = unit.forecast(Loop(engine, engine.plan, request()).plan_window())
    last = ", 8" if cache == "teacache" else ""
    skipped = STEPS - (5 if last else 4)
    assert line == (
        f"dit: {skipped} of 8 steps skipped; computed: 1-3, 5{last}; guidance-interval changes at 2; "
        "weak-blocks changes at 3, 5"
    )


class Kept:
    """The steps after which a cache holds a residual, by branch."""

    def __init__(self, cache: str) -> None:
        self.name = f"{cache}.residual"
        self.steps: dict[str, list[int]] = {}

    @hookimpl
    def unembed(self, forward: Forward) -> None:
        if forward.memory.get(self.name) is not None:
            self.steps.setdefault(forward.branches[0].name, []).append(forward.step.index)


class KeepsAll(PipelineUnit):
    """Has a cache keep what the blocks added in every step."""

    name = "keeps-all"

    @hookimpl(trylast=True)
    def begin_window(self, window: Window) -> None:
        for step in window.steps:
            for cache in ("teacache", "magcache"):
                step[f"{cache}.is_needed"] = True


@pytest.mark.parametrize(
    ("units", "kept"),
    [
        ([TeaCache(threshold=10)], [0, 1, 2, 3, 4, 5, 6]),
        ([TeaCache(threshold=1e-9)], []),
        ([MagCache(threshold=10, ratios=(1.0,), retention=0.5, max_skips=1)], [3, 4, 5, 6]),
        ([TeaCache(threshold=10), WeakBlocks(2, 3)], [0, 1, 3, 4, 5, 6]),
    ],
)
def test_what_blocks_added_is_kept_while_a_step_will_use_it(units: list[PipelineUnit], kept: list[int]) -> None:
    look = Kept(units[0].name)
    made = latents(*units, observers=[look])
    assert look.steps == ({"positive": kept, "negative": kept} if kept else {})
    assert made.equal(latents(KeepsAll(), *units))


def test_a_branch_that_comes_late_is_kept_from_where_it_comes() -> None:
    look = Kept("teacache")
    plan = [Scene(frames=5), Guidance(scale=3.0), *denoising_units(STEPS)[2:]]
    units = [GuidanceInterval(low=0.0, high=0.9), TeaCache(threshold=10)]
    fake_engine([*plan, *units], observers=[look]).generate(request())
    assert look.steps["negative"][-1] == 6
    assert look.steps["positive"] == list(range(7))
