"""Files in the form of ComfyUI-GGUF, stable-diffusion.cpp and llama.cpp, read as tensors of torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from omniavatar_gguf.format import GgufFormat
from omniavatar_gguf.tensor import GgufTensor
from safetensors.torch import load_file
from torch import Tensor

import tests.formats
from omniavatar.checkpoints import fingerprint
from omniavatar.errors import CheckpointError

PUBLIC = Path(tests.formats.__file__).parent / "public"
CASES = {
    case["name"]: case
    for case in json.loads((PUBLIC / "cases.json").read_text(encoding="utf-8"))["cases"]
    if case["kind"] == "gguf"
}
OFFICIAL = [
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias", r"blocks.\1.pos_embedding.embedding"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.", r"blocks.\1.attn."),
    (r"encoder\.block\.(\d+)\.layer\.0\.layer_norm", r"blocks.\1.norm1"),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0", r"blocks.\1.ffn.gate.0"),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1", r"blocks.\1.ffn.fc1"),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo", r"blocks.\1.ffn.fc2"),
    (r"encoder\.block\.(\d+)\.layer\.1\.layer_norm", r"blocks.\1.norm2"),
    (r"encoder\.final_layer_norm", "norm"),
    (r"shared", "token_embedding"),
]
"""Hugging Face's names of a T5 and the official ones of the expected values."""


def dense(file: Path, *, device: str = "cpu") -> dict[str, Tensor]:
    reader = GgufFormat()
    content = reader.read(file, reader.read_header(file).tensors, device)
    return {name: tensor.dense() if isinstance(tensor, GgufTensor) else tensor for name, tensor in content}


def official(name: str) -> str:
    for pattern, replacement in OFFICIAL:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_numbers_of_the_reference_readers(case: dict[str, Any]) -> None:
    found = dense(PUBLIC / case["files"][0])
    if case.get("role") == "text_encoder":
        found = {official(name): tensor for name, tensor in found.items()}
    expected = load_file(PUBLIC / case["expected"])
    assert expected.keys() <= found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_header_says_what_will_be_read(case: dict[str, Any]) -> None:
    file, reader = PUBLIC / case["files"][0], GgufFormat()
    header = reader.read_header(file)
    for name, tensor in reader.read(file, header.tensors, "cpu"):
        info = header.tensors[name]
        assert tuple(tensor.shape) == info.shape == header.entries[name]
        if isinstance(tensor, GgufTensor):
            assert (info.packing, info.dtype, info.stored_bytes) == ("gguf", tensor.kind.name.lower(), tensor.nbytes)
        else:
            assert (info.packing, info.dtype) == (None, str(tensor.dtype).removeprefix("torch."))


def test_the_hash_is_that_of_the_plain_file() -> None:
    plain, packed, cut = (
        GgufFormat().read_header(PUBLIC / "gguf" / f"wan_{name}.gguf") for name in ("F16", "Q8_0", "Q4_K")
    )
    assert fingerprint(plain.entries) == fingerprint(packed.entries) == fingerprint(cut.entries)


def test_what_the_metadata_says() -> None:
    metadata = GgufFormat().read_header(PUBLIC / "gguf" / "umt5_Q8_0.gguf").metadata
    assert metadata["general.architecture"] == "t5encoder"
    assert metadata["tokenizer"]()("t4", return_tensors="pt")["input_ids"].tolist() == [[4, 1]]


# --- files made here


def write_gguf(path: Path, tensors: dict[str, np.ndarray], architecture: str | None = "wan") -> Path:
    writer = GGUFWriter(path, architecture or "")  # which leaves an empty one out
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("architecture", [None, "pig", "cow"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_names_decide_where_the_architecture_does_not(tmp_path: Path, architecture: str | None, prefix: str) -> None:
    signs = ("blocks.0.self_attn.norm_q.weight", "text_embedding.2.weight", "head.modulation")
    tensors = {prefix + name: noise(1, 2, 4) for name in signs}
    found = dense(write_gguf(tmp_path / "x.gguf", tensors, architecture))
    assert found.keys() == tensors.keys()
    tensors.popitem()
    with pytest.raises(CheckpointError, match="its tensors fit none"):
        dense(write_gguf(tmp_path / "x.gguf", tensors, architecture))


def test_a_text_encoder_without_architecture(tmp_path: Path) -> None:
    tensors = {f"enc.blk.0.{name}.weight": noise(4) for name in ("attn_rel_b", "ffn_gate")}
    tensors |= {"token_embd.weight": noise(8, 4), "enc.output_norm.weight": noise(4)}
    assert set(dense(write_gguf(tmp_path / "x.gguf", tensors, None))) == {
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        "encoder.final_layer_norm.weight",
        "shared.weight",
    }


def test_two_names_for_one_tensor_of_a_text_encoder(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": noise(8, 4), "shared.weight": noise(8, 4)}
    with pytest.raises(CheckpointError, match=r"'token_embd.weight' and 'shared.weight' both mean 'shared.weight'"):
        dense(write_gguf(tmp_path / "x.gguf", tensors, "t5"))


def test_t5_names_are_those_of_the_gguf_package() -> None:
    from omniavatar_gguf.names import hugging_face_name

    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 2)
    names = gguf.MODEL_TENSORS[gguf.MODEL_ARCH.T5ENCODER]
    for kind in names:
        name = gguf.TENSOR_NAMES[kind].format(bid=1)
        renamed = hugging_face_name(f"{name}.weight").removesuffix(".weight")
        assert renamed == name or known.get_name(renamed) == name


def test_leading_ones_that_ggml_leaves_out(tmp_path: Path) -> None:
    tensors = {"blocks.0.modulation": noise(6, 8), "head.head.weight": noise(6, 8), "head.modulation": noise(1, 2, 8)}
    found = dense(write_gguf(tmp_path / "x.gguf", tensors))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "blocks.0.modulation": (1, 6, 8),
        "head.head.weight": (6, 8),
        "head.modulation": (1, 2, 8),
    }


def test_double_precision(tmp_path: Path) -> None:
    weight = noise(3, 4).astype(np.float64)
    (tensor,) = dense(write_gguf(tmp_path / "x.gguf", {"a.weight": weight})).values()
    assert torch.equal(tensor, torch.from_numpy(weight))


def test_tensors_are_the_mapped_file_and_changing_them_leaves_it(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", {"a.weight": noise(64, 64), "b.weight": noise(64, 64)})
    before = file.read_bytes()
    first, second = (tensor for _, tensor in GgufFormat().read(file, ["a.weight", "b.weight"], "cpu"))
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    first.zero_()
    assert file.read_bytes() == before


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", {"a.weight": noise(4, 4), "b.weight": noise(4, 4)})
    assert [name for name, _ in GgufFormat().read(file, ["b.weight"], "cpu")] == ["b.weight"]
    with pytest.raises(CheckpointError, match="has no tensor 'c'"):
        list(GgufFormat().read(file, ["c"], "cpu"))


def test_packed_tensors_go_to_the_device_as_they_are() -> None:
    file = PUBLIC / "gguf" / "wan_Q8_0.gguf"
    name = "blocks.0.ffn.0.weight"
    ((_, tensor),) = GgufFormat().read(file, [name], "meta")
    assert isinstance(tensor, GgufTensor)
    assert tensor.kind == GGMLQuantizationType.Q8_0
    assert tensor.parts["blocks"].device.type == "meta"
