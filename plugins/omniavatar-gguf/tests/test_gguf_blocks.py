"""Every block type gives the numbers of the gguf package, bit by bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from omniavatar_gguf import blocks, format
from omniavatar_gguf.blocks import PLAIN, UNPACK, block_size, dequantise
from omniavatar_gguf.tensor import GgufTensor


def random_blocks(kind: GGMLQuantizationType, count: int, seed: int = 0) -> np.ndarray:
    """Blocks of random bytes, which are valid in every type, infinite and undefined scales included."""
    return np.random.default_rng(seed).integers(0, 256, (count, block_size(kind)[1]), dtype=np.uint8)


def reference(content: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.dequantize(content, kind)).reshape(-1)


@pytest.mark.parametrize("kind", UNPACK, ids=lambda kind: kind.name)
def test_random_blocks_as_the_gguf_package_reads_them(kind: GGMLQuantizationType) -> None:
    content = random_blocks(kind, 400)
    numbers = dequantise(torch.from_numpy(content), kind).numpy()
    np.testing.assert_array_equal(numbers, reference(content, kind))


def test_every_type_that_the_gguf_package_reads() -> None:
    sample = {kind: np.zeros((1, block_size(kind)[1]), np.uint8) for kind in gguf.GGML_QUANT_SIZES}
    readable = set()
    for kind, content in sample.items():
        try:
            gguf.quants.dequantize(content, kind)
            readable.add(kind)
        except NotImplementedError:
            pass
    assert readable <= {*UNPACK, *PLAIN}


def test_headers_name_the_types_that_are_read() -> None:
    assert set(format.PACKED) == {kind.name for kind in UNPACK}
    assert {GGMLQuantizationType[name]: getattr(torch, dtype) for name, dtype in format.PLAIN.items()} == PLAIN


def test_large_tensors_are_made_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = GGMLQuantizationType.Q4_K
    content = random_blocks(kind, 21)
    monkeypatch.setattr(blocks, "SLAB_CPU", 5 * 256)
    np.testing.assert_array_equal(dequantise(torch.from_numpy(content), kind).numpy(), reference(content, kind))


def test_numbers_are_rounded_once() -> None:
    kind = GGMLQuantizationType.Q4_1
    weight = np.random.default_rng(1).normal(size=(6, 64)).astype(np.float32)
    packed = GgufTensor(torch.from_numpy(gguf.quants.quantize(weight, kind)).view(-1, 20), kind, (6, 64))
    exact = torch.from_numpy(reference(packed.parts["blocks"].numpy(), kind)).view(6, 64)
    assert torch.equal(packed.dense(), exact)
    assert torch.equal(packed.dense(torch.bfloat16), exact.bfloat16())
    assert packed.nbytes == 12 * 20


def test_it_moves_with_its_parts() -> None:
    kind = GGMLQuantizationType.Q8_0
    packed = GgufTensor(torch.from_numpy(random_blocks(kind, 4)), kind, (4, 32)).to("meta")
    assert packed.parts["blocks"].device.type == "meta"
    assert packed.shape == (4, 32)
    assert packed.dense().shape == (4, 32)


@pytest.mark.parametrize("kind", UNPACK, ids=lambda kind: kind.name)
def test_all_is_done_where_the_blocks_lie(kind: GGMLQuantizationType) -> None:
    """On a device without data, a table that lies elsewhere and a look at a value are errors."""
    content = torch.from_numpy(random_blocks(kind, 4)).to("meta")
    numbers = dequantise(content, kind, torch.bfloat16)
    assert (numbers.device.type, numbers.dtype) == ("meta", torch.bfloat16)
    assert numbers.shape == (4 * block_size(kind)[0],)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", UNPACK, ids=lambda kind: kind.name)
def test_the_same_numbers_on_a_gpu(kind: GGMLQuantizationType) -> None:
    content = random_blocks(kind, 400)
    numbers = dequantise(torch.from_numpy(content).cuda(), kind).cpu().numpy()
    np.testing.assert_array_equal(numbers, reference(content, kind))
