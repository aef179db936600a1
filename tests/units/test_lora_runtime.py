"""LoRA beside the weights: the same as merged, up to rounding, whatever keeps or moves the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from omniavatar.checkpoints.lora import Delta
from omniavatar.engine.conversion import TrainsWeights
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import build_plan
from omniavatar.engine.scopes import Request
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.fp8 import Fp8Linear
from omniavatar.models.lora import Beside, Strengths, WithBeside, change_when_read
from omniavatar.models.lora import merged as merged_weight
from omniavatar.testing import GivenLora
from omniavatar.testing.tiny import DIT, TinyModels
from omniavatar.units import Lora
from tests.models.networks import noise
from tests.scenes import Frames, fake_engine
from tests.training.scenes import SETTINGS, catalog

SMALL = {**SETTINGS, "euler": {"steps": 4}, "fixed-frames": {"window_frames": 9, "overlap": 5}}
PLAN = "default-write-video"
WIDTH = DIT["dim"]
STEPS = ((0.0, 0.5, 1.0), (0.5, 1.0, 0.0))


def state(*layers: str, seed: int = 0, **extra: Tensor) -> dict[str, Tensor]:
    found = {}
    for index, layer in enumerate(layers):
        found[f"{layer}.lora_A.weight"] = noise(2, WIDTH, seed=seed + index) / 4
        found[f"{layer}.lora_B.weight"] = noise(WIDTH, 2, seed=seed + index + 9) / 4
    return {**found, **extra}


QUERIES = GivenLora(state("blocks.0.self_attn.q", "blocks.3.cross_attn.o"), "queries")


def play(expression: str, *loras: GivenLora, **settings: Any) -> tuple[Tensor, Engine]:
    """The frames of a video with LoRA files, and the engine that made it."""

    class Models(TinyModels):
        def adapters(self) -> list[GivenLora]:
            return list(loras)

    watch = Frames()
    plan = build_plan(expression, catalog(), SMALL, settings)
    engine = Engine(plan, Models(), dtype=torch.float32, observers=[watch])
    engine.generate(Request({"prompt": "hi"}, seconds=0.36))
    return torch.cat(watch.seen, dim=2), engine


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


@pytest.fixture(scope="module")
def merged() -> Tensor:
    frames, engine = play(PLAN, QUERIES)
    assert not any(isinstance(module, Beside) for module in engine.model("dit").modules())
    return frames


@pytest.fixture(scope="module")
def without() -> Tensor:
    return play(PLAN)[0]


@pytest.mark.parametrize("units", ["", "+cfg-merge", "+offload", "+disk-offload", "+fp8(mode=storage)"])
def test_beside_the_weights_it_is_the_same(units: str, merged: Tensor) -> None:
    frames, engine = play(f"{PLAN}{units}", QUERIES, lora={"merge": False})
    reference = merged if "fp8" not in units else play(f"{PLAN}{units}", QUERIES)[0]
    torch.testing.assert_close(frames, reference, atol=2e-2 if "fp8" in units else 2e-3, rtol=0)
    assert sum(isinstance(module, Beside) for module in engine.model("dit").modules()) == 2


@pytest.mark.slow
def test_compiled_it_is_the_same(merged: Tensor) -> None:
    frames, _ = play(f"{PLAN}+compile(backend=aot_eager)", QUERIES, lora={"merge": False})
    close(frames, merged)


def test_it_changes_the_video(merged: Tensor, without: Tensor) -> None:
    assert (merged - without).abs().max() > 0.02
    assert play(PLAN, QUERIES, lora={"scale": 0.0})[0].equal(without)


KINDS = {
    "LoHa": {
        f"blocks.1.ffn.0.hada_w{i}_{half}": noise(*shape, seed=i)
        for i in (1, 2)
        for half, shape in (("a", (DIT["ffn_dim"], 2)), ("b", (2, WIDTH)))
    },
    "LoKr": {
        "blocks.1.self_attn.v.lokr_w1": noise(4, 4, seed=1),
        "blocks.1.self_attn.v.lokr_w2": noise(WIDTH // 4, WIDTH // 4, seed=2) / 2,
    },
    "DoRA": state("blocks.1.self_attn.k") | {"blocks.1.self_attn.k.dora_scale": noise(WIDTH, 1).abs() + 1},
    "deltas": {
        "blocks.1.self_attn.k.diff": noise(WIDTH, WIDTH) / 10,
        "blocks.1.self_attn.k.diff_b": noise(WIDTH),
        "blocks.0.diff_m": noise(1, 6, WIDTH) / 4,
        "blocks.0.self_attn.norm_q.diff": noise(WIDTH) / 4,
        "patch_embedding.diff_b": noise(WIDTH) / 4,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, without: Tensor) -> None:
    lora = GivenLora(KINDS[kind], kind, strength=0.7)
    frames = play(PLAN, lora)[0]
    close(play(PLAN, lora, lora={"merge": False})[0], frames)
    assert (frames - without).abs().max() > 0.005


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_strengths_by_ranges_of_the_steps(kind: str | None, without: Tensor, merged: Tensor) -> None:
    """The same all along is as merged, 0 all along as without; a range lies between."""
    given = KINDS[kind] if kind else QUERIES.state
    whole = play(PLAN, GivenLora(given, "one"))[0]
    same = play(PLAN, GivenLora(given, "two", strength=((0.0, 0.5, 1.0), (0.5, 1.0, 1.0))))[0]
    close(same, whole)
    nothing = play(PLAN, GivenLora(given, "three", strength=((0.0, 0.5, 0.0), (0.5, 1.0, 0.0))))[0]
    assert nothing.equal(without)
    first, engine = play(PLAN, GivenLora(given, "four", strength=STEPS))
    assert (first - whole).abs().max() > 1e-3
    assert (first - without).abs().max() > 1e-3
    engine.close()


def test_a_second_video_begins_with_the_first_strengths() -> None:
    first, engine = play(PLAN, GivenLora(KINDS["deltas"] | dict(QUERIES.state), strength=STEPS))
    watch = Frames()
    engine.generate(Request({"prompt": "hi"}, seconds=0.36), observers=[watch])
    assert torch.cat(watch.seen, dim=2).equal(first)


def test_caches_are_told_where_strengths_change() -> None:
    regimes = []

    class Watch:
        @hookimpl
        def begin_window(self, window: Any) -> None:
            regimes.append([sorted(step.regimes) for step in window.steps])

    class Models(TinyModels):
        def adapters(self) -> list[GivenLora]:
            return [GivenLora(QUERIES.state, "/x/style.safetensors", strength=STEPS)]

    engine = Engine(build_plan(PLAN, catalog(), SMALL), Models(), observers=[Watch()])
    engine.generate(Request({"prompt": "hi"}, seconds=0.2))
    assert regimes[0] == [["lora style.safetensors at 1"]] * 2 + [["lora style.safetensors at 0"]] * 2


BY_STEPS = GivenLora(KINDS["deltas"] | dict(QUERIES.state), "by steps", strength=STEPS)


@pytest.fixture(scope="module")
def by_steps() -> Tensor:
    return play(PLAN, BY_STEPS)[0]


@pytest.mark.parametrize("units", ["+offload", "+offload(resident=2)", "+disk-offload"])
def test_norms_change_with_the_steps_wherever_the_weights_are(units: str, by_steps: Tensor) -> None:
    assert play(f"{PLAN}{units}", BY_STEPS)[0].equal(by_steps)


@pytest.mark.slow
def test_norms_change_with_the_steps_in_compiled_code(by_steps: Tensor) -> None:
    close(play(f"{PLAN}+compile(backend=aot_eager)", BY_STEPS)[0], by_steps)


def test_a_weight_that_changes_when_it_is_read_has_the_bits_of_a_merged_one() -> None:
    changes = [(Delta(noise(6, seed=3)), 0), (Delta(noise(6, seed=4)), 1)]
    for dtype in (torch.float32, torch.bfloat16):
        norm, strengths = nn.LayerNorm(6).to(dtype), Strengths([0.7, -0.3], "cpu")
        before = norm.weight.detach().clone()
        change_when_read(norm, {"weight": changes}, strengths, "cpu")
        for numbers in ([0.7, -0.3], [0.0, 2.0], [0.0, 0.0]):
            strengths.set(numbers)
            expected = merged_weight(before, [(change, numbers[file]) for change, file in changes]).to(dtype)
            assert norm.weight.equal(expected)
            assert norm(noise(2, 6).to(dtype)).equal(functional.layer_norm(noise(2, 6).to(dtype), (6,), expected))
            assert dict(norm.named_parameters())["weight"].equal(before)


def test_modules_of_one_kind_stay_so_when_their_weights_change() -> None:
    norms = [nn.LayerNorm(6) for _ in range(2)]
    for norm in norms:
        change_when_read(norm, {"bias": [(Delta(noise(6)), 0)]}, Strengths([1.0], "cpu"), "cpu")
    assert type(norms[0]) is type(norms[1])
    assert isinstance(norms[0], nn.LayerNorm)


def test_what_works_before_the_steps_does_so_at_the_first_strengths() -> None:
    bias = TinyModels().networks["audio_adapter"].state_dict()["audio_proj.proj.bias"]
    state = {"audio_proj.proj.diff_b": noise(*bias.shape)}
    lora = GivenLora(state, "sound", target="audio_adapter", strength=STEPS)
    first, engine = play(PLAN, lora)
    watch = Frames()
    engine.generate(Request({"prompt": "hi"}, seconds=0.36), observers=[watch])
    assert torch.cat(watch.seen, dim=2).equal(first)


def test_the_report_is_in_the_record_of_the_video() -> None:
    engine = play(PLAN, QUERIES, GivenLora({**QUERIES.state, "x.y.diff": noise(1)}, "b", strength=-0.5))[1]
    result = engine.generate(Request({"prompt": "hi"}, seconds=0.2))
    one, two = result.manifest["loras"]
    assert (one["file"], one["strength"], one["used"], one["tensors"], one["left_out"]) == ("queries", 1.0, 4, 4, {})
    assert (two["file"], two["strength"], two["used"]) == ("b", -0.5, 4)
    assert two["left_out"] == {"this network has no layer of this name": 1}


def test_a_packed_weight_stays_packed() -> None:

    class Models(TinyModels):
        def adapters(self) -> list[GivenLora]:
            return [GivenLora({"0.lora_A.weight": noise(2, 32), "0.lora_B.weight": noise(16, 2)})]

    linear = nn.Linear(32, 16)
    packed: Any = nn.Sequential(Fp8Linear.of(linear, "storage", "row"))
    models = Models(dit=packed)
    before = packed[0].dense_weight()
    fake_engine([Lora()], models=models, dtype=torch.float32).set_up()
    layer: Any = packed[0]
    assert isinstance(layer, WithBeside)
    assert isinstance(layer.block, Fp8Linear)
    x = noise(3, 32)
    expected = x @ (before + noise(16, 2) @ noise(2, 32)).T + linear.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_training_is_refused() -> None:
    class Trains(Lora, TrainsWeights):
        name = "trains"

    models = TinyModels()
    models.adapters = lambda: [QUERIES]  # type: ignore[method-assign]
    with pytest.raises(PlanError, match="in training every LoRA is merged; leave out merge=false"):
        fake_engine([Trains(merge=False)], models=models).set_up()
