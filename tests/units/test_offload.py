"""The video is bit for bit the one made with all weights on the device; who is there when, the plan decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.engine.engine import Engine
from omniavatar.engine.placing import Kept
from omniavatar.engine.plan import Plan, build_plan
from omniavatar.engine.scopes import Forward, Request, Step, Window
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.compiled import Compiled
from omniavatar.models.streaming import Streamed
from omniavatar.testing import GivenLora
from omniavatar.testing.tiny import DIT, TinyModels
from omniavatar.units import Offload
from omniavatar.units.offload import resident_blocks
from tests.scenes import Frames
from tests.training.scenes import SETTINGS, catalog, diffusion

LAYERS = DIT["num_layers"]
SMALL = {**SETTINGS, "schedule": {"steps": 3}, "fixed-frames": {"window_frames": 9, "overlap": 5}}


class Witness(Frames):
    """Keeps what the windows of all videos show, and who was on the device in which hook."""

    def __init__(self) -> None:
        super().__init__()
        self.present: dict[str, set[str]] = {}

    def note(self, hook: str, engine: Engine) -> None:
        self.present.setdefault(hook, set()).update(engine.residency.present)

    @hookimpl(trylast=True)
    def after_step(self, step: Step) -> None:
        self.note("steps", step.engine)

    @hookimpl(trylast=True)
    def end_window(self, window: Window) -> None:
        super().end_window(window)
        self.note("end_window", window.engine)


def play(expression: str, *observers: Any, models: Any = None, seconds: float = 0.48) -> tuple[Tensor, Engine, Witness]:
    """The frames of a video of two windows."""
    witness = Witness()
    plan = build_plan(expression, catalog(), SMALL)
    engine = Engine(plan, models or TinyModels(), observers=[witness, *observers])
    engine.generate(Request({"prompt": "hi"}, seconds=seconds))
    return torch.cat(witness.seen, dim=2), engine, witness


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("settings", ["", "(resident=1)", "(resident=4)", "(resident=99)", "(resident_params=200000)"])
def test_it_changes_no_bit(settings: str) -> None:
    plain, _, _ = play("default-write-video")
    offloaded, engine, _ = play(f"default-write-video+offload{settings}")
    assert torch.equal(offloaded, plain)
    assert all(isinstance(block, Streamed) for block in engine.model("dit").blocks)


@pytest.mark.slow
@pytest.mark.parametrize(
    "others", ["teacache(threshold=10)", "cfg-merge", "sliding-window(size=2, stride=1)", "gradient-checkpointing"]
)
def test_with_units_that_skip_join_and_cut_calls(others: str) -> None:
    plain, _, _ = play(f"default-write-video+{others}")
    offloaded, _, _ = play(f"default-write-video+{others}+offload")
    assert torch.equal(offloaded, plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "order", ["offload+compile(backend=aot_eager)", "compile(backend=aot_eager)+offload(resident=2)"]
)
def test_compiled_blocks(order: str) -> None:
    plain, _, _ = play("default-write-video", seconds=0.36)
    compiled, engine, _ = play(f"default-write-video+{order}", seconds=0.36)
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)
    assert all(isinstance(block.block, Compiled) for block in engine.model("dit").blocks)


def test_a_second_video_by_the_same_engine() -> None:
    witness = Witness()
    engine = Engine(build_plan("default-write-video+offload", catalog(), SMALL), TinyModels(), observers=[witness])
    for _ in range(2):
        engine.generate(Request({"prompt": "hi"}, seconds=0.36))
    assert torch.equal(witness.seen[0], witness.seen[1])


def test_networks_are_there_only_while_their_units_run() -> None:
    _, engine, witness = play("default-write-video+offload")
    assert witness.present["steps"] == {"dit", "audio_adapter"}
    assert witness.present["end_window"] == {"vae"}
    weights = {role: sum(w.numel() for w in engine.model(role).parameters()) for role in engine.roles}
    assert [role for role, count in weights.items() if count] == ["vae"], "whoever came last is still there"


class Weights:
    """How many bytes of the transformer are on the device while a block runs."""

    def __init__(self) -> None:
        self.most = 0

    @hookimpl
    def after_block(self, forward: Forward, index: int) -> None:
        stream = forward.network.blocks[0].stream
        places = [*stream.shared, *stream.own.values()]
        self.most = max(self.most, sum(len(place.memory) for place in places))


@pytest.mark.parametrize("resident", [0, 3])
def test_the_device_holds_two_blocks_and_those_that_stay(resident: int) -> None:
    weights = Weights()
    _, engine, _ = play(f"default-write-video+offload(resident={resident})", weights)
    block = engine.model("dit").blocks[0].stream.source.parcels[0].layout.nbytes
    assert weights.most == (resident + 2) * block


def test_parameters_that_stay_are_counted_as_in_the_original() -> None:
    dit: Any = TinyModels().networks["dit"]
    block = sum(weight.numel() for weight in dit.blocks[0].parameters())
    outside = sum(weight.numel() for weight in dit.parameters()) - LAYERS * block

    def count(params: int) -> int:
        return len(resident_blocks(dit, dit.blocks, Offload.Settings(resident_params=params)))

    assert [count(params) for params in (0, outside + block - 1, outside + block, outside + 3 * block, 10**12)] == [
        0,
        0,
        1,
        3,
        LAYERS,
    ]


def test_what_estimates_are_told() -> None:
    assert Offload(resident=4).keeps("dit", 40, Plan()) == Kept(on_device=6, in_host=40, copied=36)
    assert Offload(resident=4).keeps("text_encoder", 24, Plan()) == Kept(on_device=2, in_host=24, copied=24)
    assert Offload(resident=39).keeps("dit", 40, Plan()) == Kept(on_device=40, in_host=40, copied=0)


def test_lora_is_merged_before(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    halves = ("lora_A", torch.randn(2, 96)), ("lora_B", torch.randn(96, 2))
    lora = GivenLora({f"blocks.3.self_attn.q.{name}.weight": value for name, value in halves})
    monkeypatch.setattr(TinyModels, "adapters", lambda models: [lora])
    merged, _, _ = play("default-write-video")
    without, _, _ = play("default-write-video-lora")
    for order in ("offload+lora", "lora+offload", "lora+disk-offload"):
        assert torch.equal(play(f"default-lora-write-video+{order}")[0], merged)
    assert not torch.equal(without, merged)


def test_networks_that_another_engine_streams_are_refused() -> None:
    models = TinyModels()
    play("default-write-video+offload", models=models)
    with pytest.raises(PlanError, match="the blocks of 'text_encoder' are streamed for another engine already"):
        play("default-write-video+offload", models=models)


def test_training_is_refused(tmp_path: Any) -> None:
    run = diffusion(tmp_path, expression="default+offload")
    with pytest.raises(PlanError, match="'offload' is for making videos, and training changes weights; leave it out"):
        run.task(None)  # type: ignore[arg-type]  # refused before it looks at samples


def test_sharded_weights_are_refused() -> None:
    for name in ("offload", "disk-offload", "fp8"):
        with pytest.raises(PlanError, match=f"'{name}' and 'fsdp' cannot work together"):
            build_plan(f"default+fsdp+{name}", catalog(), SMALL)
    with pytest.raises(PlanError, match="take the one for which there is memory"):
        build_plan("default+offload+disk-offload", catalog(), SMALL)
