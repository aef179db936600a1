"""Quantised files in networks: weights of linear layers stay packed, in as many bytes, and compute what they mean."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from omniavatar.checkpoints import Component, loading
from omniavatar.checkpoints.formats import PackedTensor
from omniavatar.checkpoints.loading import load_network, read_into
from omniavatar.errors import CheckpointError
from omniavatar.models.conversion import Conversions, Merging
from omniavatar.models.fp8 import Fp8Blocks, Fp8Linear
from omniavatar.models.packed import PackedLayer, PackedLinear
from omniavatar.models.wan_dit import WanDiT
from tests.checkpoints.quantise import dense, raw, scaled
from tests.checkpoints.tiny import DIT, State, dit_state, tiny_registry, write_safetensors
from tests.models.networks import noise

PUBLIC = Path(__file__).parents[1] / "formats" / "public"
KINDS = {
    "one scale": scaled(dit_state()),
    "rows": scaled(dit_state(), rows=True),
    "ModelOpt": scaled(dit_state(), suffix="weight_scale"),
    "e5m2": scaled(dit_state(), torch.float8_e5m2),
    "int8": scaled(dit_state(), torch.int8, rows=True, suffix="weight_scale"),
    "raw": raw(dit_state()),
}
INPUTS = (noise(1, 16, 2, 4, 4, seed=1), torch.tensor([500.0]), noise(1, 3, 20, seed=2))


def component(folder: Path, state: State) -> Component:
    """A quantised file of the tiny transformer, recognised by the hash of the plain one."""
    return tiny_registry(folder).detect(write_safetensors(folder / "quantised.safetensors", state)).components[0]


def plain(state: State) -> WanDiT:
    """The network with the dense weights."""
    network = WanDiT(**DIT)
    network.load_state_dict(dense(state))
    return network.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_network_computes_the_same(tmp_path: Path, kind: str) -> None:
    state = KINDS[kind]
    network = load_network([component(tmp_path, state)], dtype=torch.float32)
    layers = [layer for layer in network.modules() if isinstance(layer, PackedLinear)]
    assert len(layers) == 10 * DIT["num_layers"] + (6 if kind == "raw" else 0)
    assert not any(weight.requires_grad for weight in network.parameters())
    for name, layer in network.named_modules():
        if isinstance(layer, PackedLinear):
            assert torch.equal(layer.dense_weight(), dense(state)[f"{name}.weight"])
    torch.testing.assert_close(network(*INPUTS), plain(state)(*INPUTS), atol=1e-6, rtol=1e-5)


def test_weights_take_as_many_bytes_as_in_the_file(tmp_path: Path) -> None:
    state = KINDS["one scale"]
    network: Any = load_network([component(tmp_path, state)], dtype=torch.bfloat16)
    of_blocks = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("blocks.")}
    expected = sum(
        tensor.nbytes if "scale" in name or tensor.dtype.itemsize == 1 else tensor.numel() * 2
        for name, tensor in state.items()
        if name.startswith("blocks.")
    )
    assert sum(tensor.nbytes for tensor in of_blocks.values()) == expected
    layer = network.blocks[0].ffn[0]
    assert (layer.in_features, layer.out_features, layer.bias.dtype) == (24, 32, torch.bfloat16)
    assert torch.equal(layer.dense_weight(), dense(state)["blocks.0.ffn.0.weight"])


def test_no_dense_weight_is_made_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lives at each moment is never more than the packed network and one weight."""
    parts = [component(tmp_path, KINDS["one scale"])]
    largest, stored = 0, loading.stored_tensors

    def live() -> int:
        return sum(one.nbytes for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter) and not one.is_meta)

    def watching(*arguments: Any) -> Iterator[tuple[str, Tensor | PackedTensor]]:
        nonlocal largest
        for item in stored(*arguments):
            yield item
            largest = max(largest, live())

    gc.collect()
    gc.freeze()  # what was there before is not looked at
    try:
        monkeypatch.setattr(loading, "stored_tensors", watching)
        network = load_network(parts, dtype=torch.bfloat16)
    finally:
        gc.unfreeze()
    held = sum(tensor.nbytes for tensor in network.state_dict().values())
    assert largest <= held + 32 * 24 * 4
    assert held < 0.8 * sum(tensor.numel() * 2 for tensor in dit_state().values())


def test_padded_weights_take_the_shape_of_the_network() -> None:
    """The sides of this network are 40 and 72; its file stores 48 and 80, or 64 and 96."""
    for name in ("comfy_nvfp4_padded", "comfy_mxfp8_padded"):
        file, expected = (PUBLIC / "quant" / part / f"{name}.safetensors" for part in ("", "expected"))
        network = network_of(file)
        for key, tensor in load_file(expected).items():
            if not key.startswith("linear."):
                layer: Any = network.get_submodule(key.removesuffix(".weight"))
                assert isinstance(layer, PackedLinear)
                torch.testing.assert_close(layer.dense_weight(), tensor, atol=1e-6, rtol=0)


def network_of(file: Path, **options: Any) -> nn.Module:
    """The Wan transformer in a file without a row."""
    from omniavatar.checkpoints import read_header
    from omniavatar.checkpoints.registry import detection
    from omniavatar.checkpoints.tables import ComponentSpec, Row

    header = read_header([file])
    width, layers = header.tensors["patch_embedding.weight"].shape[0], 1
    while f"blocks.{layers}.norm3.weight" in header.tensors:
        layers += 1
    config = {
        **DIT,
        "dim": width,
        "ffn_dim": header.tensors["blocks.0.ffn.0.bias"].shape[0],
        "text_dim": header.tensors["text_embedding.0.weight"].shape[1],
        "freq_dim": header.tensors["time_embedding.0.weight"].shape[1],
        "num_heads": 1 if width == 32 else 2,
        "num_layers": layers,
    }
    spec = ComponentSpec(network="omniavatar.models.wan_dit:WanDiT", config=config)
    row = Row(name="public", hash="0" * 32, components={"dit": spec})
    return load_network(detection(row, header, file.parent).components, **options)


def test_a_lora_on_a_quantised_base_is_added_to_the_dense_weight() -> None:
    """The public cases: dense in float32, the deltas added, and all other weights as they are."""
    for base in ("fp8_scaled", "comfy_int8_convrot"):
        case = next(one for one in CASES if one["name"] == f"lora_on_{base}")
        expected, factors = load_file(PUBLIC / case["expected"]), load_file(PUBLIC / case["files"][0])
        changes: dict[str, list[tuple[Any, float]]] = {}
        for name, down in factors.items():
            layer, found, _ = name.removeprefix("diffusion_model.").rpartition(".lora_down.weight")
            if found:
                pair = f"diffusion_model.{layer}"
                alpha = factors.get(f"{pair}.alpha", torch.tensor(float(len(down))))
                delta = factors[f"{pair}.lora_up.weight"].float() @ down.float() * (float(alpha) / len(down))
                changes[f"{layer}.weight"] = [(Added(delta), case["args"]["strengths"][0])]
        assert changes.keys() == {name for name in expected if name.endswith(".weight")}
        network = network_of(PUBLIC / case["base"], dtype=torch.float32, conversions=Conversions([Merging(changes)]))
        for name in changes:
            torch.testing.assert_close(network.get_parameter(name), expected[name], atol=5e-6, rtol=0)
        kept = [layer for layer in network.modules() if isinstance(layer, PackedLinear)]
        assert kept or base == "comfy_int8_convrot"


CASES = json.loads((PUBLIC / "cases.json").read_text())["cases"]


class Added:
    """A change by a delta."""

    def __init__(self, delta: Tensor) -> None:
        self.delta = delta

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        assert weight.dtype == torch.float32
        return weight + strength * self.delta


@pytest.mark.parametrize("kind", ["one scale", "rows", "raw", "e5m2", "int8"])
@pytest.mark.parametrize("scaling", ["row", "tensor"])
def test_fp8_takes_the_numbers_of_the_file(tmp_path: Path, kind: str, scaling: Any) -> None:
    state = KINDS[kind]
    conversions = Conversions([Fp8Blocks("compute", scaling)])
    network: Any = load_network([component(tmp_path, state)], dtype=torch.float32, conversions=conversions)
    layer = network.blocks[1].cross_attn.k
    assert torch.equal(layer.dense_weight(), dense(state)["blocks.1.cross_attn.k.weight"]), "not rounded again"
    if kind == "int8":
        assert isinstance(layer, PackedLinear)
        return
    assert isinstance(layer, Fp8Linear)
    assert layer.mode == ("storage" if kind == "e5m2" else "compute")
    error = (network(*INPUTS) - plain(state)(*INPUTS)).abs().max()
    assert error < (1e-5 if kind == "e5m2" else 0.1)
    assert error or kind == "e5m2", "inputs are rounded as well"


def test_what_a_file_wants_multiplied_in_full_precision_is(tmp_path: Path) -> None:
    state = KINDS["one scale"] | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    conversions = Conversions([Fp8Blocks("compute", "row")])
    network: Any = load_network([component(tmp_path, state)], dtype=torch.float32, conversions=conversions)
    assert {layer.mode for layer in network.modules() if isinstance(layer, Fp8Linear)} == {"storage"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "one scale", "int8", "raw"])
@pytest.mark.parametrize("steps", ["none", "fp8", "lora", "lora+fp8"])
def test_blocks_are_read_later_as_they_would_have_been_loaded(tmp_path: Path, kind: str, steps: str) -> None:
    parts = [component(tmp_path, dit_state() if kind == "plain" else KINDS[kind])]

    def conversions() -> Conversions:
        added = Merging({"blocks.1.ffn.0.weight": [(Added(noise(32, 24, seed=3)), 0.5)]})
        chosen = ([added] if "lora" in steps else []) + ([Fp8Blocks("compute", "row")] if "fp8" in steps else [])
        return Conversions(chosen)

    whole = load_network(parts, dtype=torch.bfloat16, conversions=conversions()).state_dict()
    later = conversions()
    network = load_network(parts, dtype=torch.bfloat16, blocks=False, conversions=later)
    left = {name: weight for name, weight in network.named_parameters() if weight.is_meta}
    assert left.keys() == {name for name in whole if name.startswith("blocks.")}
    targets = {name: torch.zeros_like(weight, device="cpu") for name, weight in left.items()}
    for index in range(DIT["num_layers"]):
        block = {name: target for name, target in targets.items() if name.startswith(f"blocks.{index}.")}
        read_into(parts, block, later)
    for name, target in targets.items():
        assert (target.dtype, target.shape) == (whole[name].dtype, whole[name].shape)
        assert torch.equal(target.view(torch.uint8), whole[name].contiguous().view(torch.uint8)), name


def test_in_training_weights_are_dense(tmp_path: Path) -> None:
    conversions = Conversions(keeps_packed=False)
    network = load_network([component(tmp_path, KINDS["one scale"])], dtype=torch.float32, conversions=conversions)
    assert not any(isinstance(layer, PackedLayer) for layer in network.modules())
    assert all(torch.equal(network.state_dict()[name], value) for name, value in dense(KINDS["one scale"]).items())


def test_whole_numbers_where_a_network_computes(tmp_path: Path) -> None:
    state = dit_state()
    file = write_safetensors(tmp_path / "a.safetensors", {**state, "head.head.weight": state["head.head.weight"].int()})
    with pytest.raises(CheckpointError, match=r"head.head.weight has the whole numbers of int32, .* quantised"):
        tiny_registry(tmp_path).detect(file)
    torch.save({**state, "blocks.0.ffn.0.weight": state["blocks.0.ffn.0.weight"].to(torch.int8)}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"blocks.0.ffn.0.weight has the whole numbers of int8"):
        tiny_registry(tmp_path).detect(tmp_path / "b.pt")
    file = write_safetensors(tmp_path / "c.safetensors", {**state, "head.head.bias": state["head.head.bias"].long()})
    found = tiny_registry(tmp_path).detect(file).components
    with pytest.raises(CheckpointError, match=r"c.safetensors: head.head.bias has the whole numbers of int64"):
        load_network(found)


def test_the_skeleton_has_the_forms_of_the_file(tmp_path: Path) -> None:
    from omniavatar.checkpoints import Bundle

    file = write_safetensors(tmp_path / "quantised.safetensors", KINDS["rows"])
    bundle = Bundle.open([file], tiny_registry(tmp_path))
    for conversions in (None, Conversions([Fp8Blocks("storage", "row")])):
        skeleton = bundle.skeleton("dit", dtype=torch.bfloat16, conversions=conversions)
        assert all(weight.is_meta for weight in skeleton.parameters())
        loaded = bundle.load(
            "dit", dtype=torch.bfloat16, conversions=Conversions(conversions.steps if conversions else ())
        )
        shapes = [
            {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
            for network in (skeleton, loaded)
        ]
        assert shapes[0] == shapes[1]


def test_single_numbers_have_a_dimension_that_can_be_sharded(tmp_path: Path) -> None:
    network = load_network([component(tmp_path, KINDS["one scale"])], dtype=torch.float32)
    assert all(weight.ndim for weight in network.parameters())
