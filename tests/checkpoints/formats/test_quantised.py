"""Quantised safetensors against the public set: what ComfyUI, kijai's nodes, LightX2V, musubi-tuner, quanto make."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from omniavatar.checkpoints import Header, fingerprint, read_header
from omniavatar.checkpoints.files import find_checkpoints
from omniavatar.checkpoints.formats import PackedTensor
from omniavatar.checkpoints.formats.packing import rotation
from omniavatar.checkpoints.loading import stored_tensors
from omniavatar.errors import CheckpointError

PUBLIC = Path(__file__).parents[2] / "formats" / "public"
CASES = json.loads((PUBLIC / "cases.json").read_text())["cases"]
QUANTISED = {case["name"]: case for case in CASES if case["kind"] == "quantised"}
LEVELS = {"comfy_int8": 127, "comfy_int8_rows": 127, "comfy_int8_convrot": 127, "comfy_asym_w4a8": 127}
LEVELS["comfy_convrot_w4a4"] = 7
"""Where the reference also rounds the input of a layer, token by token: the largest whole number."""


def header_of(case: dict[str, Any]) -> Header:
    (files,) = find_checkpoints(PUBLIC / case["files"][0])
    return read_header(files)


def weights(case: dict[str, Any]) -> dict[str, Tensor | PackedTensor]:
    return dict(stored_tensors(header_of(case).tensors, "cpu"))


def fitted(weight: PackedTensor, expected: Tensor) -> PackedTensor:
    """As the network takes it, which knows the true shape; the set has weights without the factors of their inputs."""
    bare = {name: part for name, part in weight.parts.items() if name != "pre_quant_scale"}
    return weight.with_parts(bare).cut(tuple(expected.shape))


@pytest.mark.parametrize("name", QUANTISED)
def test_dense_weights(name: str) -> None:
    case = QUANTISED[name]
    found, expected = weights(case), load_file(PUBLIC / case["expected"])
    prefix, tolerance = case["args"]["prefix"], case["tolerance"]
    layers = {key: tensor for key, tensor in expected.items() if not key.startswith("linear.")}
    for key, tensor in layers.items():
        weight = found.get(key, found.get(prefix + key))
        assert weight is not None, key
        dense = fitted(weight, tensor).dense() if isinstance(weight, PackedTensor) else weight.float()
        torch.testing.assert_close(dense, tensor.float(), atol=tolerance["atol"], rtol=tolerance.get("rtol", 0))
    packed = {key.removeprefix(prefix) for key, weight in found.items() if isinstance(weight, PackedTensor)}
    assert packed == (layers.keys() if name != "fp8_raw" else set())


@pytest.mark.parametrize("name", [name for name, case in QUANTISED.items() if "linear" in case])
def test_layers(name: str) -> None:
    case = QUANTISED[name]
    expected, found = load_file(PUBLIC / case["expected"]), weights(case)
    layer = case["linear"]["layer"]
    weight, bias = (found.get(f"{case['args']['prefix']}{layer}.{part}") for part in ("weight", "bias"))
    assert isinstance(weight, PackedTensor)
    x, y = expected[f"linear.{layer}.x"].float(), expected[f"linear.{layer}.y"].float()
    dense = weight.cut((y.shape[-1], x.shape[-1])).dense()
    if group := getattr(weight, "rotated", 0):
        turned = rotation(group, torch.device("cpu"))
        x, dense = ((one.unflatten(-1, (-1, group)) @ turned).flatten(-2) for one in (x, dense))
    if name in LEVELS:
        scale = x.abs().amax(dim=-1, keepdim=True) / LEVELS[name]
        x = (x / scale).round() * scale
    made = functional.linear(x, dense, bias.float() if isinstance(bias, Tensor) else None)
    torch.testing.assert_close(made, y, atol=case["linear"]["tolerance"]["atol"], rtol=0)


@pytest.mark.parametrize("name", [name for name in QUANTISED if not name.endswith("padded")])
def test_the_hash_is_that_of_the_plain_file(name: str) -> None:
    case = QUANTISED[name]
    header = header_of(case)
    prefix = case["args"]["prefix"]
    expected = {key: t for key, t in load_file(PUBLIC / case["expected"]).items() if not key.startswith("linear.")}
    plain = {name: info.shape for name, info in header.tensors.items() if info.packing is None}
    assert header.hash == fingerprint(plain | {f"{prefix}{key}": tuple(t.shape) for key, t in expected.items()})
    assert not [key for key in header.tensors if re.search("scale|comfy_quant|_data|absmax|codebook|fp8", key)]
    stored = sum(info.nbytes for info in header.tensors.values())
    assert stored <= sum(file.stat().st_size for file in header.files)
    loaded = weights(case).values()
    of_scales = sum(weight.nbytes for weight in loaded)
    assert stored == of_scales, "what the header says is what is in memory"


def test_padded_weights_have_the_shape_that_the_bias_tells() -> None:
    info = header_of(QUANTISED["comfy_nvfp4_padded"]).tensors["blocks.0.self_attn.q.weight"]
    assert info.shape == (40, 48)
    assert info.could_be((40, 40))
    assert not info.could_be((40, 32))
    assert not info.could_be((41, 40))


SAID = {
    "fp8_missing_scale": r"layer 'blocks.0.self_attn.q' has no scale, although 'scaled_fp8' says",
    "fp8_scale_shape": r"'blocks.0.self_attn.q' has the scale .* float32 \[15\], which .* \[16, 16\]",
    "fp8_scale_nan": r"'blocks.0.self_attn.q.scale_weight' holds a scale that is not finite",
    "fp8_scale_zero": r"'blocks.0.self_attn.q.scale_weight' holds a scale that is zero or negative",
    "fp8_scale_without_weight": r"the scale 'blocks.0.self_attn.nothing.scale_weight' belongs to no weight",
    "comfy_unknown_format": r"'blocks.0.self_attn.q' has the format 'float6_e3m2_blocks', .* known are float8_e4m3fn, ",
    "comfy_quant_no_json": r"description of the layer 'blocks.0.self_attn.q' is not a JSON object",
    "comfy_quant_deep_json": r"description of the layer 'blocks.0.self_attn.q' is not a JSON object",
    "comfy_metadata_no_json": r"its _quantization_metadata is not JSON",
    "comfy_metadata_wrong_kind": r'in its _quantization_metadata, "layers" must be an object of objects',
    "comfy_metadata_absent_layer": r"describes the layer 'blocks.9.self_attn.q', which the file lacks",
    "nvfp4_missing_scale_2": r"'blocks.0.self_attn.q' lacks 'blocks.0.self_attn.q.weight_scale_2'",
    "nvfp4_short_scales": r"'blocks.0.self_attn.q' has the scales .* \[16, 4\]; .* needs float8_e4m3fn \[128, 4\]",
    "nvfp4_odd_columns": r"'blocks.0.self_attn.q' cannot be nvfp4: \[16, 7\] bytes with scales \[128, 4\]",
    "int8_missing_scale": r"'blocks.0.self_attn.q' has int8 numbers \[16, 16\] without a scale",
    "int8_convrot_group": r"'blocks.0.self_attn.q' is rotated in groups of 24 inputs; the group must be a power of 4",
    "uint8_no_description": r"'blocks.0.self_attn.q' is packed \(uint8 \[16, 8\]\), and nothing describes how",
    "quanto_no_scale": r"'blocks.0.self_attn.q' lacks 'blocks.0.self_attn.q.weight._scale'",
    "nunchaku": r"is an SVDQuant \(nunchaku\) file .*, which is not read",
    "bnb_nf4": r"is a bitsandbytes file .*, which is not read",
}


@pytest.mark.parametrize("name", SAID)
def test_broken_files(name: str) -> None:
    case = next(case for case in CASES if case["name"] == name)
    with pytest.raises(CheckpointError, match=SAID[name]) as caught:
        weights(case)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


# --- what belongs to a weight may lie in another shard


def split(file: Path, folder: Path) -> Path:
    """The tensors of a file in two shards with an index, each other one in the second: scales part from weights."""
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata()
    state = load_file(file)
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places: dict[str, str] = {}
    for number, shard in enumerate(names):
        own = {name: tensor for name, tensor in state.items() if name.endswith(".weight") is (number == 0)}
        save_file(own, folder / shard, metadata if number else None)
        places |= dict.fromkeys(own, shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return index


@pytest.mark.parametrize(
    "name",
    ["fp8_scaled", "comfy_int8_convrot", "comfy_fp8_metadata", "comfy_nvfp4_prequant", "lightx2v_nvfp4_alpha"],
)
def test_a_scale_may_lie_in_another_shard(name: str, tmp_path: Path) -> None:
    whole = header_of(QUANTISED[name])
    (files,) = find_checkpoints(split(whole.files[0], tmp_path))
    header = read_header(files)
    assert header.hash == whole.hash
    for weight, tensor in stored_tensors(whole.tensors, "cpu"):
        (found,) = [value for _, value in stored_tensors({weight: header.tensors[weight]}, "cpu")]
        if isinstance(tensor, PackedTensor):
            assert isinstance(found, PackedTensor)
            found, tensor = found.dense(), tensor.dense()  # noqa: PLW2901
        assert isinstance(found, Tensor)
        assert torch.equal(found.float(), tensor.float())


def test_a_scale_that_no_shard_has_is_missed(tmp_path: Path) -> None:
    index = split(PUBLIC / "quant" / "fp8_scaled.safetensors", tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    state = load_file(shard)
    gone = state.pop("blocks.0.self_attn.q.scale_weight")
    assert gone is not None
    save_file(state, shard)
    places = json.loads(index.read_text())["weight_map"]
    del places["blocks.0.self_attn.q.scale_weight"]
    index.write_text(json.dumps({"weight_map": places}))
    (files,) = find_checkpoints(index)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002.*blocks\.0\.self_attn\.q' has no scale"):
        read_header(files)


def test_each_shard_may_say_that_its_weights_are_scaled(tmp_path: Path) -> None:
    split(PUBLIC / "quant" / "fp8_scaled.safetensors", tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    save_file({**load_file(shards[0]), "scaled_fp8": load_file(shards[1])["scaled_fp8"]}, shards[0])
    assert "scaled_fp8" not in read_header(shards).tensors
    save_file({**load_file(shards[0]), "head.head.bias": load_file(shards[1])["head.head.bias"]}, shards[0])
    with pytest.raises(CheckpointError, match=r"'head\.head\.bias' is also in another of the 2 files"):
        read_header(shards)
