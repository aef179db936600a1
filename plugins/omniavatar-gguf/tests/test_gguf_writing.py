"""Files that are written: what is quantised, what is kept, and that the gguf package and this plugin read them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from omniavatar_gguf import write
from omniavatar_gguf.format import GgufFormat
from omniavatar_gguf.tensor import GgufTensor
from omniavatar_gguf.writing import FILE_TYPES
from torch import Tensor

from omniavatar.checkpoints import fingerprint
from omniavatar.errors import CheckpointError, OutputError

SHAPES = {
    "patch_embedding.weight": (64, 16, 1, 2, 2),
    "patch_embedding.bias": (64,),
    "text_embedding.0.weight": (64, 64),
    "time_projection.1.weight": (384, 64),
    "blocks.0.self_attn.q.weight": (64, 64),
    "blocks.0.self_attn.q.bias": (64,),
    "blocks.0.self_attn.norm_q.weight": (64,),
    "blocks.0.modulation": (1, 6, 64),
    "blocks.0.ffn.0.weight": (128, 64),
    "blocks.0.cross_attn.k.weight": (64, 48),
    "head.head.weight": (64, 64),
    "head.modulation": (1, 2, 64),
}
MATRICES = ("blocks.0.self_attn.q.weight", "blocks.0.ffn.0.weight")
"""What is quantised: within a block, in rows that are multiples of 32."""


def network(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def read(file: Path) -> dict[str, Tensor | GgufTensor]:
    reader = GgufFormat()
    return dict(reader.read(file, reader.read_header(file).tensors, "cpu"))


def reference(file: Path) -> dict[str, np.ndarray]:
    """The numbers of a file as the gguf package reads it, in torch's shapes."""
    reader = gguf.GGUFReader(file)
    return {
        tensor.name: gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type).reshape(tensor.shape[::-1])
        for tensor in reader.tensors
    }


@pytest.mark.parametrize("quantisation", FILE_TYPES)
def test_matrices_of_blocks_are_quantised_and_others_kept(tmp_path: Path, quantisation: str) -> None:
    tensors, file = network(), tmp_path / "wan.gguf"
    write(file, tensors, quantisation)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    kept = {name: "F32" if len(shape) == 1 or "modulation" in name else "BF16" for name, shape in SHAPES.items()}
    matrices = set(MATRICES) | ({"blocks.0.cross_attn.k.weight"} if "F16" in quantisation else set())
    assert kinds == kept | dict.fromkeys(matrices, quantisation)
    found, numbers = read(file), reference(file)
    assert list(found) == list(SHAPES)
    for name, tensor in found.items():
        values = tensor.dense() if isinstance(tensor, GgufTensor) else tensor.float()
        assert np.array_equal(values.numpy(), numbers[name])
        error = (values - tensors[name].float()).abs().max()
        assert 0 < error < 0.4 if name in matrices and quantisation.startswith("Q") else error == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_without_quantisation_every_bit_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors, file = network(dtype), tmp_path / "wan.gguf"
    write(file, tensors)
    found = read(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        content = found[name]
        assert isinstance(content, Tensor)
        assert content.dtype == dtype
        assert torch.equal(content, tensor)
    assert fingerprint(GgufFormat().read_header(file).entries) == fingerprint(SHAPES)


def test_the_header_of_other_programs(tmp_path: Path) -> None:
    file = tmp_path / "wan.gguf"
    metadata = {"general.name": "mine", "general.architecture": "flux"}
    GgufFormat().write(file, network(), metadata=metadata, quantisation="Q8_0")
    fields = gguf.GGUFReader(file).fields
    assert fields["general.architecture"].contents() == "wan"
    assert fields["general.file_type"].contents() == 7
    assert fields["general.quantization_version"].contents() == 2
    assert fields["general.name"].contents() == "mine"


def test_numbers_too_large_for_half_precision(tmp_path: Path) -> None:
    tensors, file = network(torch.float32), tmp_path / "wan.gguf"
    tensors["blocks.0.ffn.0.weight"][0, 0] = 1e6
    write(file, tensors, "F16")
    found = read(file)
    large, other = (found[f"blocks.0.{name}.weight"] for name in ("ffn.0", "self_attn.q"))
    assert isinstance(large, Tensor)
    assert isinstance(other, Tensor)
    assert torch.equal(large, tensors["blocks.0.ffn.0.weight"])
    assert other.dtype == torch.float16


def test_one_tensor_at_a_time_is_held(tmp_path: Path) -> None:
    class FromFile(Mapping[str, Tensor]):
        """Makes each tensor when it is asked for, and counts those that are still in use."""

        alive = most = 0

        def __getitem__(self, name: str) -> Tensor:
            tensor = torch.ones(SHAPES[name])
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(tensor, self.let_go)
            return tensor

        def let_go(self) -> None:
            self.alive -= 1

        def __iter__(self) -> Iterator[str]:
            return iter(SHAPES)

        def __len__(self) -> int:
            return len(SHAPES)

    tensors = FromFile()
    write(tmp_path / "wan.gguf", tensors, "Q8_0")
    assert tensors.most <= 2
    assert len(read(tmp_path / "wan.gguf")) == len(SHAPES)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("encoder.block.0.layer.0.SelfAttention.q.weight", torch.ones(32, 32), "text encoder"),
        ("blocks.0.ffn.0.weight", torch.ones(32, 32, dtype=torch.int8), "int8, which GGUF does not hold"),
        (f"blocks.0.{'x' * 120}.weight", torch.ones(32, 32), "too long"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, name: str, tensor: Tensor, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        write(tmp_path / "wan.gguf", {name: tensor}, "Q8_0")
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensors"):
        write(tmp_path / "wan.gguf", {}, "Q8_0")


def test_unknown_quantisations(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'Q8_1'; did you mean 'Q8_0'"):
        write(tmp_path / "wan.gguf", network(), "Q8_1")


def test_nothing_is_left_of_a_file_that_fails(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write(tmp_path / "absent" / "wan.gguf", network(), "Q8_0")

    class Failing(dict[str, Tensor]):
        asked = 0

        def __getitem__(self, name: str) -> Tensor:
            self.asked += 1
            if self.asked > 3:
                raise CheckpointError("cannot be read")
            return super().__getitem__(name)

    with pytest.raises(CheckpointError, match="cannot be read"):
        write(tmp_path / "wan.gguf", Failing(network()), "Q8_0")
    assert list(tmp_path.iterdir()) == []
