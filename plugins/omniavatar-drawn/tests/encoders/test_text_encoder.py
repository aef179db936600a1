"""Training a text encoder and its tokenizer: it learns what texts state, and the engine loads what it saves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omniavatar_drawn.encoders.descriptions import ATTRIBUTES, Description, labels
from omniavatar_drawn.encoders.paraphrases import PARAPHRASES
from omniavatar_drawn.encoders.text_encoder import (
    CONFIG,
    LENGTH,
    TextEncoderSettings,
    TextEncoderTask,
    evaluate,
    mean_of,
    tokenizer_of,
)
from omniavatar_drawn.encoders.tokenizer import train_tokenizer
from safetensors.torch import load_file
from transformers import AutoTokenizer

from omniavatar.errors import InputError
from omniavatar.models.umt5 import UMT5Encoder
from omniavatar.testing import GivenModels
from omniavatar.training.trainer import Settings, Trainer, generator
from omniavatar.units.prompt import Prompt
from tests.scenes import fake_engine

SMALL: dict[str, Any] = {**CONFIG, "vocab": 320, "dim": 32, "dim_attn": 32, "dim_ffn": 32, "num_layers": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's folder."""
    folder: Path = tmp_path_factory.mktemp("run") / "tokenizer"
    tokenizer_of(folder, 320, texts=200)
    return folder


@pytest.fixture
def task(folder: Path) -> TextEncoderTask:
    torch.manual_seed(2)
    return TextEncoderTask(UMT5Encoder(**SMALL), tokenizer_of(folder, 320), TextEncoderSettings(texts=16))


def test_it_learns_and_the_prompt_unit_reads_what_it_saves(
    task: TextEncoderTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = task.batch(generator(9))
    monkeypatch.setattr(task, "batch", lambda draw: same)
    before = float(task.loss(same).detach())
    Trainer(task, Settings(steps=30, learning_rate=0.02), tmp_path).run()
    assert float(task.loss(same).detach()) < 0.6 * before
    encoder = UMT5Encoder(**SMALL)
    encoder.load_state_dict(load_file(tmp_path / "text_encoder.safetensors"))
    engine = fake_engine([], models=GivenModels(text_encoder=encoder))
    text = PARAPHRASES[0].text
    unit = Prompt(tokenizer=tmp_path / "tokenizer", length=LENGTH)
    embedding = unit.encode(engine, text)
    batch = task.tokenized([PARAPHRASES[0]])
    tokens = batch["ids"].shape[1]
    assert embedding.shape == (1, LENGTH, SMALL["dim"])
    assert not embedding[:, tokens:].any()
    with torch.inference_mode():
        expected = task.encoder(batch["ids"], batch["mask"])
    torch.testing.assert_close(embedding[:, :tokens], expected, atol=0.03, rtol=0.03)
    torch.testing.assert_close(embedding[:, :tokens].square().mean(dim=-1), torch.ones(1, tokens), atol=0.02, rtol=0)


def test_batches_repeat_and_have_all_labels(task: TextEncoderTask) -> None:
    batch, again = task.batch(generator(4)), task.batch(generator(4))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["ids"].shape == batch["mask"].shape
    assert batch["ids"].shape[1] <= LENGTH
    assert batch["labels"].shape == (16, len(ATTRIBUTES))
    assert not torch.equal(batch["ids"], task.batch(generator(5))["ids"])


def test_unknown_attributes_do_not_count(task: TextEncoderTask) -> None:
    batch = dict(task.batch(generator(1)))
    before = float(task.loss(batch).detach())
    batch["labels"] = batch["labels"].clone()
    batch["labels"][0] = -1
    assert 0.5 * before < float(task.loss(batch).detach()) < before
    batch["labels"][:] = -1
    assert float(task.loss(batch).detach()) == 0


def test_what_few_texts_state_counts_as_much_as_what_all_state(task: TextEncoderTask) -> None:
    numbers = torch.zeros(10, len(ATTRIBUTES), dtype=torch.long)
    numbers[0, 5] = 2
    numbers[:, 0] = 1
    logits = [torch.zeros(10, sum(task.sizes)) for _ in range(3)]
    starts = [sum(task.sizes[:n]) for n in range(len(task.sizes))]
    logits[1][0, starts[5] + 2] = 3.0
    logits[2][:, starts[0] + 1] = 3.0
    none, rare, common = (float(task.error(one, numbers)) for one in logits)
    assert none > rare
    assert none > common
    assert none - rare > 0.5 * (none - common)


def test_scores_count_what_is_stated(task: TextEncoderTask, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(descriptions: Sequence[Description]) -> torch.Tensor:
        return torch.tensor([labels(one) for one in descriptions])

    monkeypatch.setattr(task, "read", known)
    scores = evaluate(task, captions=20)
    assert (scores.captions, scores.paraphrases, scores.silent) == (1, 1, 1)
    monkeypatch.setattr(task, "read", lambda descriptions: torch.zeros_like(known(descriptions)))
    scores = evaluate(task, captions=20)
    assert (scores.captions, scores.paraphrases, scores.silent) == (0, 0, 1)
    assert scores.worst.split()[0] in ATTRIBUTES


def test_texts_are_read_one_value_an_attribute(task: TextEncoderTask) -> None:
    read = task.read(PARAPHRASES[:3])
    assert read.shape == (3, len(ATTRIBUTES))
    assert torch.equal(read[:1], task.read(PARAPHRASES[:1]))
    assert (read < torch.tensor(task.sizes)).all()


def test_means_leave_out_padding() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [float("nan")], [7.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert mean_of(tokens, mask).tolist() == [[2.0], [5.0]]


def test_the_tokenizer_knows_any_text_and_ends_it(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer("").input_ids == [1]
    for text in ("a woman", "Ärger 漢字 😀 <tag>"):
        ids = tokenizer(text).input_ids
        assert ids[-1] == 1
        assert 2 not in ids
        assert str(tokenizer.decode(ids[:-1])).strip() == text.lower()
    assert tokenizer("A Woman").input_ids == tokenizer("a woman").input_ids
    assert len(tokenizer("a woman with").input_ids) <= 6
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_tokenizer_is_made_once(folder: Path) -> None:
    assert len(tokenizer_of(folder, 5)) == 320


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(InputError, match="vocabulary of 200 has no room for all bytes; needed are 259"):
        train_tokenizer(["a"], 200)


def test_a_tokenizer_larger_than_the_encoder_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="the tokenizer has 320 entries, the text encoder knows 300"):
        TextEncoderTask(UMT5Encoder(**{**SMALL, "vocab": 300}), tokenizer_of(folder, 320), TextEncoderSettings())
