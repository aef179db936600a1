"""Tokenizers in model files: the ids are those of sentencepiece.

sentencepiece.json: two models that sentencepiece 0.2.3 has trained on a few hundred lines, with and without bytes for
unknown characters, and the ids that it gives for some texts, the end token behind them.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.checkpoints.sentencepiece import tokenizer
from omniavatar.errors import CheckpointError
from omniavatar.models.umt5 import UMT5Encoder
from tests.checkpoints.tiny import write_safetensors

MODELS = json.loads(Path(__file__).with_name("sentencepiece.json").read_text(encoding="utf-8"))
SIZES: dict[str, Any] = {
    "dim": 8,
    "dim_attn": 8,
    "dim_ffn": 8,
    "num_heads": 2,
    "num_layers": 1,
    "num_buckets": 4,
}


def varint(value: int) -> bytes:
    value %= 2**64
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def entry(field: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(field << 3) + varint(value)
    return varint(field << 3 | 2) + varint(len(value)) + value


def written(model: dict[str, Any]) -> bytes:
    """The protocol buffer of a model."""
    rows = zip(model["tokens"], model["scores"], model["types"], strict=True)
    pieces = [
        entry(1, token.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + entry(3, kind)
        for token, score, kind in rows
    ]
    trainer = entry(3, 1) + entry(40, 2) + entry(41, -1) + entry(42, 1) + entry(43, 0)
    preparation = entry(2, base64.b64decode(model["charsmap"])) + entry(3, model["add"]) + entry(4, model["rm"])
    return b"".join(entry(1, piece) for piece in pieces) + entry(2, trainer) + entry(3, preparation)


@pytest.mark.parametrize("name", MODELS)
def test_ids_of_sentencepiece(name: str) -> None:
    model = MODELS[name]
    made = tokenizer(written(model), "here")
    assert [made(text)["input_ids"] for text in model["texts"]] == model["ids"]
    tokens = made("a person", padding="max_length", truncation=True, max_length=8, return_tensors="pt")
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape == (1, 8)


@pytest.mark.parametrize("name", MODELS)
def test_the_tokenizer_in_a_comfyui_file(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    path = write_safetensors(tmp_path / "umt5.safetensors", text_encoder(len(model["tokens"]), written(model)))
    bundle = Bundle.open([path], Registry.builtin())
    make = bundle.tokenizer("text_encoder")
    assert make is not None
    assert [make()(text)["input_ids"] for text in model["texts"]] == model["ids"]
    assert bundle.config("text_encoder")["vocab"] == len(model["tokens"])


def text_encoder(vocab: int, model: bytes) -> dict[str, torch.Tensor]:
    """A file as ComfyUI has it: the names of Hugging Face, and the tokenizer as bytes."""
    with torch.device("meta"):
        official = UMT5Encoder(vocab=vocab, shared_pos=False, **SIZES).state_dict()
    dialect = next(row for row in Registry.builtin().names.dialects if row.name == "UMT5 of Hugging Face")
    state = {}
    for name, value in official.items():
        file_name = name
        for rule in reversed(dialect.rename[1:]):
            (inverse,) = (rename.inverse() for rename in rule.renames)
            file_name = inverse.apply(file_name)
        state[file_name] = torch.zeros(value.shape)
    return {**state, "spiece_model": torch.tensor(list(model), dtype=torch.uint8)}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 30,
        entry(1, b"x")[:-1] + b"",
        varint(1 << 3 | 2) + varint(2**62),
        varint(1 << 3 | 3),
        written(MODELS["plain"])[:-5],
        entry(1, entry(1, b"a")) + entry(2, entry(3, 2)),
        entry(1, entry(1, b"\xff")) + entry(2, entry(3, 1)),
        entry(1, entry(1, b"a")) + entry(2, entry(42, 9)),
        entry(1, entry(1, b"a")) + entry(2, entry(42, -9)),
    ],
    ids=range(10),
)
def test_what_is_no_model_is_one_line(data: bytes) -> None:
    with pytest.raises(
        CheckpointError, match=r"^here is no sentencepiece model \(.*prompt\(tokenizer=FOLDER\)$"
    ) as caught:
        tokenizer(data, "here")
    assert "\n" not in str(caught.value)
