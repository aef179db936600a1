"""Skip-layer guidance: which calls do without which blocks, in one batch too, and what it goes with."""

from __future__ import annotations

from collections.abc import Generator
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
from omniavatar.models.streaming import Streamed
from omniavatar.units import Euler, FirstBlockCache, Guidance, Schedule, SkipLayerGuidance, Transformer
from tests.models.networks import relative_error
from tests.scenes import Frames, Scene, fake_engine, fake_models, request, tiny_engine

PLAN = "default-write-video"


class Look:
    """Keeps for every call its step, its branches and the blocks that were run, fewer samples with their number."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @hookimpl(wrapper=True)
    def run_blocks(self, forward: Forward) -> Generator[None, Tensor, Tensor]:
        before = [block.calls for block in forward.network.blocks]
        result = yield
        ran = [i for i, block in enumerate(forward.network.blocks) if block.calls > before[i]]
        names = "+".join(branch.name for branch in forward.branches)
        self.calls.append(f"{forward.step.index} {names}: {' '.join(map(str, ran))}")
        return result


def look(*units: PipelineUnit, scale: float = 3.0, steps: int = 3, audio_scale: float | None = None) -> Look:
    seen = Look()
    guidance = Guidance(scale=scale, audio_scale=audio_scale)
    plan = [Scene(frames=5), guidance, Schedule(steps=steps), Euler(), Transformer(), *units]
    fake_engine(plan, models=fake_models(), observers=[seen]).generate(request())
    return seen


def test_weak_branches_do_without_blocks_in_its_steps() -> None:
    unit = SkipLayerGuidance(blocks=(1, 2), start=0.34, end=0.67)
    assert look(unit).calls == [
        *("0 positive: 0 1 2 3", "0 negative: 0 1 2 3"),
        *("1 positive: 0 1 2 3", "1 negative: 0 3"),
        *("2 positive: 0 1 2 3", "2 negative: 0 1 2 3"),
    ]
    every = SkipLayerGuidance(blocks=(3,), start=0, end=1)
    assert look(every, steps=1, audio_scale=2.0).calls == [
        "0 positive: 0 1 2 3",
        "0 no-audio: 0 1 2",
        "0 negative: 0 1 2",
    ]


def test_a_call_of_its_own() -> None:
    unit = SkipLayerGuidance(blocks=(1,), start=0, end=1, rule="extra_call")
    assert look(unit, steps=2).calls == [
        *("0 positive: 0 1 2 3", "0 negative: 0 1 2 3"),
        *("1 positive: 0 1 2 3", "1 negative: 0 1 2 3", "1 skip-layer-guidance: 0 2 3"),
    ]
    assert look(unit, steps=2, scale=1).calls[1:] == ["1 positive: 0 1 2 3", "1 skip-layer-guidance: 0 2 3"]


def test_the_first_block_may_be_left_out_under_a_cache() -> None:
    unit = SkipLayerGuidance(blocks=(0, 2), start=0, end=1)
    assert look(FirstBlockCache(threshold=0), unit, steps=1).calls == ["0 positive: 0 1 2 3", "0 negative: 1 3"]


def test_without_guidance_it_says_that_it_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    look(SkipLayerGuidance(blocks=(1,)), scale=1, steps=4)
    assert "skip-layer-guidance did nothing, since there is no guidance; raise guidance.scale" in caplog.text
    caplog.clear()
    look(SkipLayerGuidance(blocks=(1,)), steps=4)
    look(SkipLayerGuidance(blocks=(1,), rule="extra_call"), scale=1, steps=4)
    assert not caplog.text


def video(models: Bundle, catalog: Catalog, plan: str, steps: int = 2, **settings: Any) -> Tensor:
    frames = Frames()
    more = {"guidance": {"scale": 3.0}, "schedule": {"steps": steps}, **settings}
    tiny_engine(models, catalog, plan, observers=[frames], **more).generate(Request(seconds=0.04))
    return torch.cat(frames.seen, dim=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", ["cfg-merge", "offload", "disk-offload", pytest.param("compile(backend=eager)", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("rule", ["uncond", "extra_call"])
def test_it_goes_with_what_makes_videos_cheaper(tiny_models: Bundle, catalog: Catalog, more: str, rule: str) -> None:
    mine = f"skip-layer-guidance(blocks=[1, 4], start=0, end=1, rule={rule})"
    expected = video(tiny_models, catalog, f"{PLAN}+{mine}")
    assert relative_error(expected, video(tiny_models, catalog, PLAN)) > 1e-4
    for plan in (f"{PLAN}+{mine}+{more}", f"{PLAN}+{more}+{mine}"):
        assert relative_error(video(tiny_models, catalog, plan), expected) < 1e-4


@pytest.mark.slow
def test_every_end_of_its_range_is_another_video_under_a_cache(tiny_models: Bundle, catalog: Catalog) -> None:
    """The cache alone would compute steps 1 and 6 to 8."""
    cached = f"{PLAN}+teacache(threshold=0.06)"
    ends = [f"{cached}+skip-layer-guidance(blocks=[1, 2, 3], start=0, end={end / 8})" for end in range(1, 6)]
    videos = [video(tiny_models, catalog, plan, steps=8) for plan in ends]
    assert all(not one.equal(other) for index, one in enumerate(videos) for other in videos[:index])


def test_the_cache_says_where_it_computes_for_it(tiny_models: Bundle, catalog: Catalog) -> None:
    plan = f"{PLAN}+teacache(threshold=10)+skip-layer-guidance(blocks=[1], start=0.25, end=0.5)"
    engine = tiny_engine(tiny_models, catalog, plan, euler={"steps": 8})
    with engine.start(Request(seconds=0.04)) as run:
        window = run.loop.plan_window()
        said = {unit.name: list(unit.forecast(window)) for unit in engine.plan.units}
    (line,) = said["teacache"]
    assert line.endswith("computed: 1, 3, 5, 8; skip-layer-guidance changes at 3, 5")
    assert said["skip-layer-guidance"] == ["weak branches without block 1 in 2 of 8 steps: 3-4"]


def test_blocks_that_are_left_out_are_not_fetched(tiny_models: Bundle, catalog: Catalog) -> None:
    """But for those calls that run them."""
    loads: list[int] = []

    class Source:
        @hookimpl(trylast=True)
        def begin_job(self, job: Any) -> None:
            block: Any = job.engine.model("dit").blocks[0]
            assert isinstance(block, Streamed)
            source: Any = block.stream.source
            load = source.load

            def counted(index: int, memory: Tensor) -> None:
                loads.append(index)
                load(index, memory)

            source.load = counted

    plan = f"{PLAN}+offload+skip-layer-guidance(blocks=[2, 3], start=0, end=1)"
    settings = {"guidance": {"scale": 3.0}, "schedule": {"steps": 1}}
    engine = tiny_engine(tiny_models, catalog, plan, observers=[Source()], **settings)
    engine.generate(Request(seconds=0.04))
    count = len(engine.model("dit").blocks)
    assert [loads.count(index) for index in range(2, count - 1)] == [1, 1, *[2] * (count - 5)]


def test_a_block_that_there_is_not(tiny_models: Bundle, catalog: Catalog) -> None:
    with pytest.raises(PlanError, match=r"leaves out block 9 and the transformer has the blocks 0 to 5; choose"):
        tiny_engine(tiny_models, catalog, f"{PLAN}+skip-layer-guidance")
    with pytest.raises(PlanError, match="blocks are counted from 0"):
        build_plan("default+skip-layer-guidance(blocks=[-1])", catalog)


def test_sharded_weights_are_gathered_by_all_ranks_together(tiny_models: Bundle, catalog: Catalog) -> None:
    plan = f"{PLAN}+guidance-parallel+fsdp+skip-layer-guidance(blocks=[1])"
    with pytest.raises(PlanError, match="leave out guidance-parallel or fsdp"):
        tiny_engine(tiny_models, catalog, plan).check_request(Request(seconds=0.04))
