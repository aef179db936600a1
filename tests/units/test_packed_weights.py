"""A transformer whose file is fp8 with scales makes a video in 8 bits, whatever moves or compiles its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import build_plan
from omniavatar.engine.scopes import Request
from omniavatar.models.conversion import Conversions
from omniavatar.models.fp8 import E4M3, Fp8Linear
from omniavatar.models.packed import PackedLayer, PackedLinear
from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing.tiny import BASE_IN_DIM, DIT, weights, write_original
from tests.checkpoints.quantise import dense, scaled
from tests.checkpoints.tiny import write_safetensors
from tests.models.networks import relative_error
from tests.scenes import Frames
from tests.units.test_disk_offload import SMALL, catalog

LAYERS = 10
"""Linear layers of a block."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of files as they are published, and the transformer quantised and dense, each in one file."""
    folder = tmp_path_factory.mktemp("models")
    write_original(folder)
    torch.manual_seed(3)
    state = scaled(weights(WanDiT(**{**DIT, "in_dim": BASE_IN_DIM})), rows=True)
    write_safetensors(folder / "quantised" / "fp8.safetensors", state)
    write_safetensors(folder / "dense" / "dense.safetensors", dense(state))
    return folder


def opened(folder: Path, transformer: str, *more: Path) -> Bundle:
    names: list[Any] = [transformer, "Wan2.1-T2V-tiny/*.pth", "OmniAvatar-tiny", "wav2vec2-tiny", *more]
    return Bundle.open([folder / name for name in names], Registry.builtin())


def play(folder: Path, expression: str, transformer: str = "quantised") -> tuple[Tensor, Engine]:
    watch = Frames()
    engine = Engine(build_plan(expression, catalog(), SMALL), opened(folder, transformer), observers=[watch])
    engine.generate(Request({"prompt": "hi"}, seconds=0.36))
    return torch.cat(watch.seen, dim=2), engine


def layers_of(engine: Engine) -> set[type]:
    """The classes of packed layers in the blocks, those included that LoRA is added beside."""
    layers = [getattr(layer, "block", layer) for layer in engine.model("dit").blocks.modules()]
    return {type(layer) for layer in layers if isinstance(layer, PackedLayer)}


def names_of_block(engine: Engine) -> list[str]:
    return [f"blocks.1.{name}" for name, _ in engine.model("dit").blocks[1].named_parameters()]


def read_again(engine: Engine) -> list[Tensor]:
    """The weights of the second block, as they come to the device."""
    source = engine.model("dit").blocks[1].stream.source
    memory = torch.zeros(source.parcels[1].layout.nbytes, dtype=torch.uint8)
    source.load(1, memory)
    views: list[Tensor] = source.parcels[1].layout.views(memory)
    return views


BARE = "default-write-video-lora"


def test_the_video_is_that_of_the_dense_weights(folder: Path) -> None:
    packed, engine = play(folder, BARE)
    assert layers_of(engine) == {PackedLinear}
    torch.testing.assert_close(packed, play(folder, BARE, "dense")[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "unit",
    [
        "offload",
        "offload(resident=2)",
        "disk-offload",
        pytest.param("compile(backend=aot_eager)", marks=pytest.mark.slow),
    ],
)
def test_what_moves_or_compiles_blocks_changes_nothing(folder: Path, unit: str) -> None:
    packed, _ = play(folder, BARE)
    other, engine = play(folder, f"{BARE}+{unit}")
    assert layers_of(engine) == {PackedLinear}
    torch.testing.assert_close(other, packed, atol=1e-5, rtol=1e-5)
    if "offload" in unit:
        parcel = engine.model("dit").blocks[0].stream.source.parcels[0]
        sizes = [(torch.Size(shape).numel(), dtype) for _, shape, dtype in parcel.layout.places]
        assert sum(dtype == E4M3 for _, dtype in sizes) == LAYERS
        assert sum(count * dtype.itemsize for count, dtype in sizes) < 0.4 * sum(count * 4 for count, _ in sizes)


def test_lora_is_added_beside_packed_weights(folder: Path) -> None:
    merged, engine = play(folder, "default-write-video")
    assert layers_of(engine) == {PackedLinear}
    torch.testing.assert_close(merged, play(folder, "default-write-video", "dense")[0], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["", pytest.param("-lora", marks=pytest.mark.slow)])
def test_fp8_and_disk_offload_go_together(folder: Path, lora: str) -> None:
    for transformer in ("quantised", "dense"):
        rounded, engine = play(folder, f"default-write-video{lora}+fp8", transformer)
        assert layers_of(engine) == {Fp8Linear}
        read, other = play(folder, f"default-write-video{lora}+fp8+disk-offload", transformer)
        assert layers_of(other) == {Fp8Linear}
        weights_read = [part.clone() for part in read_again(other)]
        for index, (part, name) in enumerate(zip(weights_read, names_of_block(engine), strict=True)):
            expected = engine.model("dit").get_parameter(name)
            assert torch.equal(part.view(torch.uint8), expected.contiguous().view(torch.uint8)), (index, name)
        assert relative_error(read, rounded) < 2e-3, "products of numbers that lie elsewhere in memory"
        offloaded = play(folder, f"default-write-video{lora}+fp8+offload", transformer)[0]
        assert relative_error(offloaded, rounded) < 2e-3


def test_fp8_rounds_no_second_time(folder: Path) -> None:
    packed, _ = play(folder, BARE)
    stored, engine = play(folder, f"{BARE}+fp8(mode=storage)")
    assert layers_of(engine) == {Fp8Linear}
    torch.testing.assert_close(stored, packed, atol=1e-5, rtol=1e-5)
    computed, _ = play(folder, f"{BARE}+fp8")
    assert 1e-5 < relative_error(computed, packed) < 0.03


def test_compiled_layers_break_no_graph(folder: Path) -> None:
    network = opened(folder, "quantised").load("dit", dtype=torch.float32)
    layer: Any = network.blocks[0].ffn[0]  # type: ignore[index, union-attr]
    x = torch.randn(3, layer.in_features)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_training_has_dense_weights(folder: Path) -> None:
    from omniavatar.engine.conversion import TrainsWeights
    from omniavatar.engine.plan import Plan
    from omniavatar.engine.unit import PipelineUnit

    class Trains(PipelineUnit, TrainsWeights):
        """Changes weights."""

        name = "trains"
        roles = ("dit",)

    engine = Engine(Plan((Trains(),)), opened(folder, "quantised"))
    assert not layers_of(engine)
    assert not engine.conversions["dit"].keeps_packed


def test_a_change_is_asked_before_weights_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA that does not fit is found with nothing read."""
    from omniavatar.checkpoints import loading
    from omniavatar.errors import CheckpointError

    pair = {"lora_down.weight": torch.zeros(1, 96), "lora_up.weight": torch.zeros(8, 1)}
    state = {f"diffusion_model.blocks.0.ffn.0.{name}": tensor for name, tensor in pair.items()}
    file = write_safetensors(folder / "foreign.safetensors", state)
    read: list[str] = []

    stored = loading.stored_tensors

    def reading(sources: Any, device: Any) -> Any:
        read.extend(name for name in sources if "lora" not in name)
        return stored(sources, device)

    monkeypatch.setattr(loading, "stored_tensors", reading)
    engine = Engine(build_plan("default-write-video", catalog(), SMALL), opened(folder, "quantised", file))
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors.*blocks\.0\.ffn\.0"):
        engine.model("dit")
    assert not read


def test_conversions_of_given_networks_happen_in_place(folder: Path) -> None:
    """Models that hand networks over, such as those of a notebook, are converted by the engine."""
    from omniavatar.models.fp8 import Fp8Blocks

    network = opened(folder, "quantised").load("dit", dtype=torch.float32, conversions=Conversions(keeps_packed=False))
    Conversions([Fp8Blocks("storage", "row")]).convert(network)
    packed = opened(folder, "quantised").load("dit", dtype=torch.float32)
    for name, layer in network.named_modules():
        if isinstance(layer, Fp8Linear):
            other: Any = packed.get_submodule(name)
            assert relative_error(layer.dense_weight(), other.dense_weight()) < 0.04
    assert sum(isinstance(layer, Fp8Linear) for layer in network.modules()) == LAYERS * DIT["num_layers"]
