"""The tokenizer in a text encoder's file: the ids are those of sentencepiece.

sentencepiece.json: two models that sentencepiece 0.2.3 has trained on a few hundred lines, with and without bytes for
unknown characters, and the ids that it gives for some texts, the end token behind them.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from omniavatar_gguf.format import GgufFormat
from safetensors.torch import load_file

from omniavatar.cli import run_cli
from omniavatar.errors import CheckpointError
from omniavatar.media.video import read_video
from omniavatar.testing.tiny import FILES, tiny_file

MODELS = json.loads(Path(__file__).with_name("sentencepiece.json").read_text(encoding="utf-8"))


def text_encoder(path: Path, pieces: dict[str, Any], **changes: Any) -> Path:
    """A file with a tokenizer, as llama.cpp's converter writes it, and one tensor."""
    writer = gguf.GGUFWriter(path, "t5encoder")
    describe(writer, pieces, **changes)
    writer.add_tensor("enc.output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def describe(writer: gguf.GGUFWriter, pieces: dict[str, Any], **changes: Any) -> None:
    """Put a tokenizer into a file's metadata."""
    writer.add_tokenizer_model(changes.get("model", "t5"))
    writer.add_token_list(pieces["tokens"])
    writer.add_token_scores(changes.get("scores", pieces["scores"]))
    writer.add_token_types(pieces["types"])
    writer.add_add_space_prefix(pieces["add"])
    writer.add_remove_extra_whitespaces(pieces["rm"])
    writer.add_precompiled_charsmap(changes.get("charsmap", base64.b64decode(pieces["charsmap"])))
    writer.add_eos_token_id(changes.get("eos", 1))
    writer.add_pad_token_id(0)


def tokenizer_of(file: Path) -> Any:
    return GgufFormat().read_header(file).metadata["tokenizer"]()


@pytest.mark.parametrize("name", MODELS)
def test_ids_of_sentencepiece(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    tokenizer = tokenizer_of(text_encoder(tmp_path / "t5.gguf", model))
    assert [tokenizer(text)["input_ids"] for text in model["texts"]] == model["ids"]


def test_padding_as_the_prompt_unit_asks_for_it(tmp_path: Path) -> None:
    model = MODELS["plain"]
    tokenizer = tokenizer_of(text_encoder(tmp_path / "t5.gguf", model))
    tokens = tokenizer("a person", padding="max_length", truncation=True, max_length=8, return_tensors="pt")
    count = int(tokens["attention_mask"].sum())
    assert tokens["input_ids"][0, count - 1] == 1
    assert tokens["input_ids"][0, count:].tolist() == [0] * (8 - count)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "llama"},
        {"scores": [0.0]},
        {"eos": 100_000},
        {"charsmap": b"\xff" * 9},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_bad_tokenizer_is_explained(tmp_path: Path, change: dict[str, Any]) -> None:
    file = text_encoder(tmp_path / "t5.gguf", MODELS["plain"], **change)
    with pytest.raises(CheckpointError, match=r"its tokenizer is (of the kind 'llama'|damaged)") as caught:
        tokenizer_of(file)
    assert "\n" not in str(caught.value)


# --- a whole run: the same video with that file alone as with a tokenizer folder

ENCODER = next(name for name in FILES if name.startswith("text_encoder"))
LAYERS = {
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.o": "attn_o",
    "pos_embedding.embedding": "attn_rel_b",
    "norm1": "attn_norm",
    "norm2": "ffn_norm",
    "ffn.gate.0": "ffn_gate",
    "ffn.fc1": "ffn_up",
    "ffn.fc2": "ffn_down",
}
"""Official names within a block -> llama.cpp's."""
SMALL = (
    *("--size", "32x32", "--seconds", "0.52", "--schedule.steps", "1", "--guidance.scale", "2"),
    *("--fixed-frames.window-frames", "9", "--fixed-frames.overlap", "5", "--prompt", "a person"),
)


def llama_name(name: str) -> str:
    """A weight's name of Wan's text encoder -> in llama.cpp."""
    stem, _, ending = name.rpartition(".")
    if not stem.startswith("blocks."):
        return {"token_embedding": "token_embd", "norm": "enc.output_norm"}[stem] + f".{ending}"
    _, number, layer = stem.split(".", 2)
    return f"enc.blk.{number}.{LAYERS[layer]}.{ending}"


def whole_encoder(path: Path, pieces: dict[str, Any]) -> Path:
    """The tiny text encoder as GGUF, with a tokenizer."""
    writer = gguf.GGUFWriter(path, "t5encoder")
    describe(writer, pieces)
    for name, tensor in load_file(tiny_file(ENCODER)).items():
        writer.add_tensor(llama_name(name), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow
def test_the_same_video_with_that_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pieces = next(iter(MODELS.values()))
    encoder = whole_encoder(tmp_path / "t5.gguf", pieces)
    GgufFormat().read_header(encoder).metadata["tokenizer"]().save_pretrained(tmp_path / "apart" / "tokenizer")
    shutil.copy(tiny_file(ENCODER), tmp_path / "apart" / "encoder.safetensors")
    others = ", ".join(str(tiny_file(name)) for name in FILES if name != ENCODER)
    Path("my.yaml").write_text(f"units: default\nmodels_dir: nowhere\nmodels: [{others}]\n")
    videos = set()
    for file in (encoder, tmp_path / "apart" / "encoder.safetensors"):
        assert run_cli(["run", "--config", "my.yaml", "--model", str(file), *SMALL, "-o", "a.mp4"]) == 0
        frames = read_video(Path("a.mp4"))
        videos.add(frames.tobytes())
    assert len(videos) == 1
