"""The forms that `benchmarks.quantised` writes are read as what was written; the page has the record's tables."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from benchmarks.quantised import FORMS, TYPES, Ggml, GgufForm, card_table, forms, sizes, swizzled, table
from omniavatar.checkpoints import fingerprint
from omniavatar.checkpoints.formats import PackedTensor
from omniavatar.checkpoints.formats.packing import unswizzled
from omniavatar.checkpoints.headers import read_header
from omniavatar.checkpoints.loading import stored_tensors
from omniavatar.plugins import discover
from tests.distributed.conftest import ROOT

RECORD = ROOT / "benchmarks" / "results" / "quantised-tiny.json"
WEIGHT = "blocks.0.ffn.0.weight"
OTHERS = ("patch_embedding.weight", "blocks.0.ffn.0.bias", "blocks.0.modulation")
ERRORS = MappingProxyType(
    {"bf16": 0.002, "comfy-nvfp4": 0.12, "comfy-w4a4": 0.17, "comfy-w4a8": 0.12}
    | {"comfy-int8": 0.012, "comfy-int8-tensor": 0.014, "comfy-int8-convrot": 0.012, "quanto-int8": 0.012}
    | {"fp8-e4m3": 0.04, "fp8-e5m2": 0.06, "fp8-scaled-e5m2": 0.06}
    | {"gguf-q8_0": 0.006, "gguf-q5_1": 0.05, "gguf-q5_0": 0.05, "gguf-q4_1": 0.1, "gguf-q4_0": 0.1, "gguf-mxfp4": 0.13}
)
"""The most that numbers may be off, relative, root mean square; 0.03, that of fp8 e4m3, where nothing is said."""


def state() -> dict[str, Tensor]:
    """One matrix whose rows are no multiple of 32, with others beside it."""
    generator = torch.Generator().manual_seed(0)
    shapes = {WEIGHT: (256, 240), OTHERS[0]: (240, 33, 1, 2, 2), OTHERS[1]: (256,), OTHERS[2]: (1, 6, 240)}
    return {name: (torch.randn(shape, generator=generator) / 50).half() for name, shape in shapes.items()}


@pytest.mark.parametrize("name", forms(None))
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    tensors = state()
    file = forms(None)[name].write(tmp_path, "file", tensors)
    header = read_header([file], discover().formats())
    found = dict(stored_tensors(header.tensors, "cpu"))
    assert fingerprint(header.entries) == fingerprint({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    weight = found[WEIGHT]
    dense = weight.dense() if isinstance(weight, PackedTensor) else weight.float()
    error = (dense - tensors[WEIGHT].float()).norm() / tensors[WEIGHT].float().norm()
    assert 0 < error < ERRORS.get(name, 0.03)
    for other in OTHERS:
        dtype = torch.bfloat16 if name == "bf16" else torch.float16
        kept = found[other]
        assert isinstance(kept, Tensor)
        assert torch.equal(kept, tensors[other].to(dtype))


def test_scales_in_tiles_are_found_again() -> None:
    scales = torch.arange(200 * 6).reshape(200, 6).to(torch.uint8)
    assert torch.equal(unswizzled(swizzled(scales), 200, 6), scales)


class Library:
    """Writes blocks of zeros, as many bytes as ggml would."""

    class Function:
        def __call__(
            self, kind: int, source: int, target: int, start: int, rows: int, numbers: int, matrix: None
        ) -> int:
            block, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            return rows * numbers // block * nbytes

    ggml_quantize_chunk = Function()


def test_ggml_makes_what_the_gguf_package_cannot() -> None:
    ggml = Ggml(Library())  # type: ignore[arg-type]
    assert set(forms(ggml)) - set(forms(None)) >= {"gguf-q4_k", "gguf-q6_k", "gguf-q2_k", "gguf-iq4_xs"}
    assert GgufForm(GGMLQuantizationType.Q4_K, ggml).blocks(torch.zeros(32, 240)).shape == (30, 144)
    with pytest.raises(NotImplementedError):
        GgufForm(GGMLQuantizationType.Q4_K, None).blocks(torch.zeros(1, 256))


def test_large_transformers_are_as_large_as_the_measured_ones() -> None:
    computed = sizes({"fp8": 8.0, "q8_0": 8.5, "bf16": 16.0})
    results = ROOT / "benchmarks" / "results"
    small = {row["row"]: row for row in json.loads((results / "loading-1.3b.json").read_text())["rows"]}
    large = {row["row"]: row for row in json.loads((results / "loading-14b-h200.json").read_text())["rows"]}
    assert computed["14b"]["fp8"] == large["fp8-scaled"]["network_gb"]
    assert computed["1.3b"]["fp8"] == small["fp8-scaled"]["network_gb"]
    assert computed["1.3b"]["q8_0"] == small["gguf-q8_0"]["network_gb"]
    assert computed["1.3b"]["bf16"] == small["bf16"]["network_gb"]


def test_the_page_has_the_tables_of_the_record() -> None:
    record = json.loads(RECORD.read_text())
    assert {row["form"] for row in record["rows"]} == {"fp16", *FORMS, *(f"gguf-{name.lower()}" for name in TYPES)}
    assert [row["form"] for row in record["rows"] if row["mouth"] is None] == []
    page = (ROOT / "docs" / "memory.md").read_text()
    assert "\n".join(table(record)) in page
    assert "\n".join(card_table(record)) in page
