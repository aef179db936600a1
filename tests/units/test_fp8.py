"""8 bits in a plan: a small change, after LoRA, with weights that take half the room."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import build_plan
from omniavatar.errors import PlanError
from omniavatar.models.fp8 import E4M3, Fp8Linear
from omniavatar.testing import GivenLora
from omniavatar.testing.tiny import TinyModels
from tests.models.networks import relative_error
from tests.training.scenes import catalog, diffusion
from tests.units.test_offload import SMALL, play


@pytest.mark.parametrize("mode", ["compute", "storage"])
def test_the_video_is_nearly_the_same(mode: str) -> None:
    plain, _, _ = play("default-write-video", seconds=0.36)
    coarse, engine, _ = play(f"default-write-video+fp8(mode={mode})", seconds=0.36)
    assert 1e-4 < relative_error(coarse, plain) < 0.03
    dit = engine.model("dit")
    assert {type(block.ffn[0]) for block in dit.blocks} == {Fp8Linear}
    assert not any(isinstance(layer, Fp8Linear) for layer in engine.model("text_encoder").modules())


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["", "(resident=2)"])
@pytest.mark.parametrize("order", ["fp8+offload{}", "offload{}+fp8"])
def test_offload_brings_8_bits(order: str, settings: str) -> None:
    rounded, _, _ = play("default-write-video+fp8", seconds=0.36)
    offloaded, engine, _ = play(f"default-write-video+{order.format(settings)}", seconds=0.36)
    assert torch.equal(offloaded, rounded)
    full, wide, _ = play("default-write-video+offload", seconds=0.36)
    sizes = [
        sum(torch.Size(shape).numel() * dtype.itemsize for _, shape, dtype in parcel.layout.places)
        for parcel in (each.model("dit").blocks[0].stream.source.parcels[0] for each in (engine, wide))
    ]
    assert sizes[0] < 0.35 * sizes[1], "float32 to 8 bits, with scales and biases"
    assert not torch.equal(full, rounded)


@pytest.mark.slow
def test_compiled() -> None:
    rounded, _, _ = play("default-write-video+fp8", seconds=0.36)
    compiled, _, _ = play("default-write-video+compile(backend=aot_eager)+fp8", seconds=0.36)
    assert relative_error(compiled, rounded) < 0.02, "8 bits make steps of what was rounding"


def test_other_networks_when_asked() -> None:
    models: Any = TinyModels()
    Engine(build_plan("default+fp8(networks=[text_encoder])", catalog(), SMALL), models).set_up()
    assert {weight.dtype for weight in models.networks["dit"].parameters()} == {torch.float32}
    assert E4M3 in {weight.dtype for weight in models.networks["text_encoder"].parameters()}


def test_lora_is_merged_before_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    halves = ("lora_A", torch.randn(2, 96)), ("lora_B", torch.randn(96, 2))
    lora = GivenLora({f"blocks.3.self_attn.q.{name}.weight": value for name, value in halves})
    monkeypatch.setattr(TinyModels, "adapters", lambda models: [lora])
    one, _, _ = play("default-write-video+fp8", seconds=0.36)
    other, _, _ = play("default-lora-write-video+fp8+lora", seconds=0.36)
    assert torch.equal(one, other)
    assert not torch.equal(one, play("default-lora-write-video+fp8", seconds=0.36)[0])


def test_what_it_does_not_go_with(tmp_path: Any) -> None:
    with pytest.raises(PlanError, match="'fp8' is for making videos"):
        diffusion(tmp_path, expression="default+fp8").task(None)  # type: ignore[arg-type]
