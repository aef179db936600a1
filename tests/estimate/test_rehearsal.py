"""What a run would cost, as a rehearsal sees it, against what the run then does."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.placing import Kept, PlacesWeights
from omniavatar.engine.plan import Plan, build_plan
from omniavatar.engine.progress import Progress
from omniavatar.engine.rehearsing import NotRehearsed
from omniavatar.engine.scopes import Request, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.estimate import rehearsal as rehearsing
from omniavatar.estimate import timing
from omniavatar.estimate.networks import join_blocks, materialize, signature
from omniavatar.estimate.rehearsal import Memory, Rehearsal, Stand
from omniavatar.estimate.report import Estimate, Phase
from omniavatar.estimate.timing import FEWEST_CALLS, Clock, Seconds
from omniavatar.hookspecs import hookimpl
from omniavatar.models.attention import sdpa
from omniavatar.models.umt5 import UMT5Encoder
from omniavatar.models.wan_dit import PerToken, WanDiT
from omniavatar.plugins import discover
from omniavatar.resources import asset
from omniavatar.testing.tiny import DIT, TEXT, TinyModels
from tests.scenes import TINY_SETTINGS

CPU = torch.device("cpu")
TIMES = ("prepare_seconds", "denoise_seconds", "decode_seconds")
COUNTS = ("windows", "steps", "transformer_calls", "transformer_calls_skipped")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are measured for a moment only, and a whole rehearsal once."""
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.05)
    monkeypatch.setattr(timing, "MOST_SECONDS", 0.05)
    monkeypatch.setattr(rehearsing, "FEWEST_TIMES", 1)
    monkeypatch.setattr(rehearsing, "MOST_TIMES", 1)


class SketchedModels(TinyModels):
    """The tiny networks, which can also be made without weights. `read` are the names of weights that were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []
        self.loaded: list[str] = []

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        self.loaded.append(role)
        return super().load(role, device=device, dtype=dtype)

    def skeleton(self, role: str, *, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        network = self.networks[role]
        if isinstance(network, WanDiT):
            with torch.device("meta"):
                return WanDiT(**DIT, attention=constructor.get("attention", sdpa)).to(dtype)
        if isinstance(network, UMT5Encoder):
            with torch.device("meta"):
                return UMT5Encoder(**TEXT).to(dtype)
        return copy.deepcopy(network).to(dtype).to("meta")

    def weights(
        self, role: str, patterns: Sequence[str], *, device: torch.device, dtype: torch.dtype
    ) -> Mapping[str, Tensor]:
        prefixes = tuple(pattern.removesuffix("*") for pattern in patterns)
        found = {name: weight for name, weight in self.networks[role].state_dict().items() if name.startswith(prefixes)}
        self.read += found
        return found


def engine_of(expression: str, models: SketchedModels, observers: Sequence[Any] = (), steps: int = 2) -> Engine:
    settings = {**TINY_SETTINGS, "schedule": {"steps": steps}}
    plan = build_plan(f"default-write-video{expression}", discover().catalog(), settings)
    return Engine(plan, models, observers=observers)


def request(seconds: float = 0.8) -> Request:
    inputs = {"image": asset("demo", "portrait.png"), "audio": asset("demo", "speech.flac")}
    return Request(inputs, seconds=seconds)


@pytest.mark.parametrize(
    ("expression", "branches"),
    [
        ("", ["negative", "positive"]),
        ("+guidance(audio_scale=3)+cfg-merge", ["negative", "no-audio", "positive"]),
        pytest.param("+guidance(scale=1)+sliding-window(size=2, stride=1)", ["positive"], marks=pytest.mark.slow),
        pytest.param("+teacache(threshold=10)", ["negative", "positive"], marks=pytest.mark.slow),
    ],
)
def test_counts_are_those_of_the_run(expression: str, branches: list[str]) -> None:
    progress = Progress()
    foreseen = Rehearsal(engine_of(expression, SketchedModels(), steps=4)).estimate(request(0.3))
    engine_of(expression, SketchedModels(), [progress], steps=4).generate(request(0.3))
    content = foreseen.as_json()
    assert {name: content[name] for name in COUNTS} == {name: getattr(progress.timings, name) for name in COUNTS}
    assert foreseen.branches == branches
    if "teacache" in expression:
        assert content["transformer_calls_skipped"] == 2 * 2 * foreseen.windows


@pytest.mark.slow
def test_what_a_cache_skips_comes_from_the_real_weights_of_the_time_embedding() -> None:
    """With other weights there, other steps are skipped; no other weight is read."""
    models = SketchedModels()
    network: Any = models.networks["dit"]
    expression = "+teacache(threshold=0.05)"
    skipped = {}
    for scale in (1.0, 0.0):
        network.time_embedding[0].weight.data *= scale
        progress = Progress()
        foreseen = Rehearsal(engine_of(expression, models, steps=6)).estimate(request(0.3))
        assert models.loaded == []
        assert models.read
        assert all(name.startswith(("time_embedding.", "time_projection.")) for name in models.read)
        engine_of(expression, models, [progress], steps=6).generate(request(0.3))
        models.loaded.clear()
        assert foreseen.transformer_calls_skipped == progress.timings.transformer_calls_skipped
        skipped[scale] = foreseen.transformer_calls_skipped
    assert skipped[0.0] > skipped[1.0]


def test_windows_that_are_alike_are_rehearsed_once() -> None:
    seen: list[int] = []

    class Seeing:
        @hookimpl
        def begin_window(self, window: Window) -> None:
            seen.append(window.index)

    foreseen = Rehearsal(engine_of("", SketchedModels()), [Seeing()]).estimate(request(1.6))
    assert foreseen.frames == 40
    assert foreseen.windows == 9
    assert seen == [0, 1]
    assert foreseen.steps == 18


class Slow(nn.Module):
    """A block that takes its time, by a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = 0
        self.time = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.time += 10.0 if self.calls == 1 else 0.5
        return x + 1


@pytest.mark.slow
def test_what_is_slow_the_first_time_does_not_count_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiling:
        def __init__(self) -> None:
            self.times = 0

        @hookimpl
        def end_window(self, window: Window) -> None:
            self.times += 1
            time.sleep(1.5 if self.times == 1 else 0)

    monkeypatch.setattr(Rehearsal, "warms_up", True)
    rehearsal = Rehearsal(engine_of("", SketchedModels()), [compiling := Compiling()])
    foreseen = rehearsal.estimate(request(0.3))
    assert compiling.times == 2
    assert foreseen.phases[-1].seconds.high < 1.5
    assert foreseen.transformer_calls == rehearsal.estimate(request(0.3)).transformer_calls


def test_a_block_is_measured_and_then_only_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    for name in ("perf_counter", "thread_time"):
        monkeypatch.setattr(timing.time, name, lambda: slow.time)
    clock = Clock(CPU)
    stand = Stand(slow, clock, Memory(CPU, {}))
    x = torch.zeros(2)
    for _ in range(20):
        stand(x)
    assert slow.calls == FEWEST_CALLS
    lap = clock.lap()
    assert lap.outside == 0
    assert lap.inside.typical == pytest.approx(20 * 0.5)
    assert stand.seconds == 0.5
    assert stand(x) is x
    stand(torch.zeros(3))
    assert slow.calls == FEWEST_CALLS + 1


@pytest.mark.slow
def test_every_rehearsal_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands outside the blocks is timed in each; observers see the first."""
    monkeypatch.setattr(rehearsing, "is_worth_repeating", lambda times, took: len(took) < 3)
    seen: list[str] = []
    pauses = iter([0.3, 0.1, 0.2])

    class Pausing(PipelineUnit):
        name = "pausing"

        @hookimpl
        def end_job(self) -> None:
            time.sleep(next(pauses))

    class Seeing:
        @hookimpl
        def begin_window(self, window: Window) -> None:
            seen.append("window")

    engine = engine_of("", SketchedModels())
    engine.plan = type(engine.plan)((*engine.plan.units, Pausing()))
    foreseen = Rehearsal(engine, [Seeing()]).estimate(request(0.3))
    decode = foreseen.phases[-1].seconds
    assert next(pauses, None) is None
    assert decode.high >= 0.3
    assert decode.typical >= 0.2
    assert decode.low < decode.high - 0.05
    assert len(seen) == min(foreseen.windows, 2)
    assert foreseen.transformer_calls == foreseen.steps * 2


def test_a_block_with_another_result_gives_an_old_one() -> None:
    stand = Stand(nn.Linear(2, 3), Clock(CPU), Memory(CPU, {}))
    results = [stand(torch.zeros(2)) for _ in range(3)]
    calls = next(iter(stand.calls.values()))
    assert calls.result is results[-1]


def test_blocks_that_are_alike_are_one() -> None:
    with torch.device("meta"):
        network = WanDiT(**{**DIT, "num_layers": 40})
        whole = sum(weight.numel() for weight in network.parameters())
    kinds, counts = join_blocks(network.blocks)
    materialize(network, CPU)
    assert (len(kinds), counts, len(network.blocks)) == (1, [40], 40)
    assert 40 * sum(weight.numel() for weight in kinds[0].parameters()) > 0.9 * whole
    assert all(weight.isfinite().all() for weight in network.parameters())
    assert network.blocks[7] is network.blocks[0]


def test_sizes_are_those_of_the_whole_networks() -> None:
    models = SketchedModels()
    foreseen = Rehearsal(engine_of("", models)).estimate(request(0.3))
    for network in foreseen.networks:
        whole = models.networks[network.role]
        assert network.parameters == sum(weight.numel() for weight in whole.parameters())
        assert network.size == sum(weight.nbytes for weight in whole.parameters())
        assert network.on_device == network.size
    assert {network.role: network.blocks for network in foreseen.networks}["dit"] == DIT["num_layers"]


def test_a_unit_says_where_blocks_are() -> None:
    """What is on the device is what it says, and a network is there only while a unit works with it."""

    class Elsewhere(PipelineUnit, PlacesWeights, NotRehearsed):
        name = "elsewhere"

        def keeps(self, role: str, blocks: int, plan: Plan) -> Kept | None:
            return Kept(on_device=2, in_host=blocks, copied=blocks) if role == "dit" else None

    models = SketchedModels()
    engine = engine_of("", models)
    engine.plan = type(engine.plan)((*engine.plan.units, Elsewhere()))
    present: list[bool] = []

    class Seeing:
        @hookimpl
        def begin_window(self, window: Window) -> None:
            present.append(rehearsal.models.networks["dit"].is_here)

        @hookimpl(trylast=True)
        def after_step(self) -> None:
            present.append(rehearsal.models.networks["dit"].is_here)

    rehearsal = Rehearsal(engine, [Seeing()])
    foreseen = rehearsal.estimate(request(0.3))
    assert foreseen.left_out == ["elsewhere"]
    assert set(present[1:3]) == {True}
    network = next(network for network in foreseen.networks if network.role == "dit")
    sizes = [sum(weight.nbytes for weight in block.parameters()) for block in models.networks["dit"].blocks]  # type: ignore[union-attr]
    assert network.on_device == network.size - (len(sizes) - 2) * sizes[0]
    assert network.in_host == network.size


def test_signatures_see_shapes_and_types_in_all_arguments() -> None:
    def per_token(rows: int) -> PerToken:
        return PerToken(torch.zeros(rows, 4), torch.zeros(1, 5, dtype=torch.int64))

    x = torch.zeros(1, 2)
    assert signature((x, per_token(1))) == signature((x + 1, per_token(1)))
    assert signature((x, per_token(1))) != signature((x, per_token(2)))
    assert signature(x) != signature(x.double())
    assert hash(signature({"x": [x]}))


def test_json_has_the_names_of_the_figures_of_a_run() -> None:
    foreseen = Rehearsal(engine_of("", SketchedModels())).estimate(request(0.3))
    assert isinstance(foreseen, Estimate)
    content = foreseen.as_json()
    assert {*COUNTS, *TIMES, "generate_seconds", "frames", "peak_rss_mib"} <= content.keys()
    assert content["generate_seconds"] == pytest.approx(sum(content[name] for name in TIMES), abs=0.002)
    assert content["fits"] is content["peak_gpu_mib"] is None
    for name in (*TIMES, "generate_seconds"):
        low, high = content[f"{name}_range"]
        assert low <= content[name] <= high


def test_a_wide_range_means_a_busy_machine() -> None:
    foreseen = Rehearsal(engine_of("", SketchedModels())).estimate(request(0.3))
    for low, high, busy in ((9.5, 10.5, False), (6.0, 12.0, True), (9.9, 15.5, True)):
        content = replace(foreseen, phases=[Phase("denoise", Seconds(10.0, low, high), None)]).as_json()
        assert (content["generate_seconds"], content["generate_seconds_range"]) == (10.0, [low, high])
        assert content["busy"] is busy
