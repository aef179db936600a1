"""The prompt: cleaned, embedded once per video, turned into context once per window and branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniavatar.checkpoints import Bundle
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Job
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError, InputError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import FakeDiT
from omniavatar.testing.recorder import WindowRecorder
from omniavatar.testing.tiny import tiny_file
from omniavatar.units import Audio, Prompt, prompt
from omniavatar.units.prompt import NEGATIVE_PROMPT, clean, load_tokenizer, words_beyond
from tests.scenes import denoising_units, fake_engine, fake_models, recorded, request, tiny_engine

TOKENIZER = tiny_file("tokenizer")


class FakeTextEncoder(nn.Module):
    """A row is the number of the token (b n 1); `texts` counts the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = 0

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.texts += 1
        return (ids * mask).float()[..., None]


class CountingDiT(FakeDiT):
    """Keeps every text embedding that it is asked to turn into context."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[Tensor] = []

    def embed_text(self, context: Tensor) -> Tensor:
        self.contexts.append(context)
        return context / 1000


def engine_for(*units: Any, encoder: nn.Module, dit: nn.Module) -> Engine:
    return fake_engine(units, models=fake_models(text_encoder=encoder, dit=dit))


def prompt_unit(**settings: Any) -> Prompt:
    return Prompt(**{"tokenizer": TOKENIZER, "length": 32, "negative": "bad", **settings})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a\tman\n\n talks  ", "a man talks"),
        ("a &amp;amp; b", "a & b"),
        ("&lt;b&gt;", "<b>"),
        ("donâ€™t", "don't"),
        ("ｆｕｌｌ", "full"),
        ("", ""),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_texts_are_embedded_once_per_video_and_context_once_per_window_and_branch() -> None:
    encoder, dit = FakeTextEncoder(), CountingDiT()
    engine = engine_for(prompt_unit(), Audio(silence=0), *denoising_units(steps=3, scale=4.5), encoder=encoder, dit=dit)
    windows = recorded(engine, request(seconds=0.48))
    assert len(windows) == 2
    assert encoder.texts == 2
    assert dit.calls == 2 * 3 * 2
    assert len(dit.contexts) == 2 * 2
    positive, negative = windows[0]["prompt_embedding"], windows[0]["negative_embedding"]
    assert not positive.equal(negative)
    for window in (dit.contexts[:2], dit.contexts[2:]):
        assert window[0].equal(positive)
        assert window[1].equal(negative)


def test_an_engine_loads_its_tokenizer_and_embeds_its_negative_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, encoder, loaded = prompt_unit(), FakeTextEncoder(), []

    def load(folder: Path) -> Any:
        loaded.append(folder)
        return load_tokenizer(folder)

    monkeypatch.setattr(prompt, "load_tokenizer", load)
    engine = engine_for(unit, Audio(), *denoising_units(), encoder=encoder, dit=FakeDiT())
    videos = [recorded(engine, request(seconds=0.24, inputs={"prompt": text})) for text in ("ab", "cd", "ab")]
    assert (len(loaded), encoder.texts) == (1, 4)
    first, other, again = (windows[0]["prompt_embedding"] for windows in videos)
    assert first.equal(again)
    assert not first.equal(other)
    negatives = [windows[0]["negative_embedding"] for windows in videos]
    assert negatives[0].equal(negatives[1])
    assert negatives[0].equal(unit.encode(engine, "bad"))


def test_other_settings_make_another_negative_prompt() -> None:
    encoder = FakeTextEncoder()
    engine = engine_for(prompt_unit(), Audio(), *denoising_units(), encoder=encoder, dit=FakeDiT())
    made = []
    for negative in ("bad", "bad", "worse"):
        recorder = WindowRecorder()
        engine.generate(request(seconds=0.24), settings={"prompt": {"negative": negative}}, observers=[recorder])
        made.append(recorder.windows[0]["negative_embedding"])
    assert made[0].equal(made[1])
    assert not made[0].equal(made[2])
    assert encoder.texts == 5
    assert len([name for name in engine.values.names() if name.startswith("prompt.")]) == 2, "the last one is kept"


def test_other_units_may_encode_texts() -> None:
    class Nag(PipelineUnit):
        name = "nag"
        needs = ("encode_text",)

        @hookimpl
        def begin_job(self, job: Job) -> None:
            job["nag.text"] = job["encode_text"]("ugly")

    unit, encoder = prompt_unit(), FakeTextEncoder()
    engine = engine_for(unit, Nag(), Audio(), *denoising_units(), encoder=encoder, dit=FakeDiT())
    (window,) = recorded(engine, request(seconds=0.24))
    assert window["nag.text"].equal(unit.encode(engine, "ugly"))


@pytest.mark.parametrize(
    ("length", "lost"),
    [(8, "efgh"), (9, "efgh"), (10, "efgh"), (12, "efgh"), (13, ""), (32, "")],
)
def test_a_text_that_is_too_long_says_which_words_are_lost(
    length: int, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A letter is a token, and so are a space and the end."""
    unit = prompt_unit(length=length)
    engine = engine_for(unit, encoder=FakeTextEncoder(), dit=FakeDiT())
    unit.encode(engine, "abc bcd efgh")
    words = f"the prompt is longer than the {length} tokens that are kept, so its last words do nothing: {lost}"
    assert [record.getMessage() for record in caplog.records] == ([words] if lost else [])


def test_nobody_is_warned_of_what_nobody_wrote(caplog: pytest.LogCaptureFixture) -> None:
    unit = Prompt(tokenizer=TOKENIZER, length=8)
    engine = engine_for(unit, encoder=FakeTextEncoder(), dit=FakeDiT())
    unit.encode(engine, unit.settings.negative, "negative prompt")
    assert not caplog.records


def test_a_long_rest_is_shown_in_short(caplog: pytest.LogCaptureFixture) -> None:
    unit = prompt_unit(length=8)
    engine = engine_for(unit, encoder=FakeTextEncoder(), dit=FakeDiT())
    unit.encode(engine, "word " * 1000, "negative prompt")
    (line,) = caplog.messages
    assert line.startswith("the negative prompt is longer than the 8 tokens")
    assert line.endswith("word ...")
    assert len(line) < 320


def test_a_single_word_that_is_too_long_is_lost_in_part() -> None:
    assert words_beyond("a" * 100, 8, len) == ["a" * 100]
    assert words_beyond("", 8, len) == []


def test_guidance_1_makes_no_negative_context() -> None:
    dit = CountingDiT()
    engine = engine_for(prompt_unit(), Audio(), *denoising_units(scale=1), encoder=FakeTextEncoder(), dit=dit)
    (window,) = recorded(engine, request(seconds=0.24))
    assert len(dit.contexts) == 1
    assert dit.contexts[0].equal(window["prompt_embedding"])


def test_what_is_encoded_is_the_clean_text_padded_or_cut_to_the_length() -> None:
    unit, encoder = prompt_unit(length=8), FakeTextEncoder()
    engine = engine_for(unit, encoder=encoder, dit=FakeDiT())
    short, same = unit.encode(engine, "ab"), unit.encode(engine, "  a&#98; ")
    assert short.shape == (1, 8, 1)
    assert (short[0, 3:] == 0).all()
    assert (short[0, :3] != 0).all()
    assert short.equal(same)
    long = unit.encode(engine, "a" * 100)
    assert long.shape == (1, 8, 1)
    assert long[0, -1] == short[0, 2], "a cut text keeps its end token"


def test_the_tiny_text_encoder_leaves_rows_behind_the_text_zero(tiny_models: Bundle, catalog: Catalog) -> None:
    engine = tiny_engine(tiny_models, catalog, "default-write-video")
    (unit,) = (unit for unit in engine.plan.units if isinstance(unit, Prompt))
    embedding = unit.encode(engine, "héllo")
    assert embedding.shape == (1, 256, 64)
    tokens = len("héllo".encode()) + 1
    assert (embedding[0, tokens:] == 0).all()
    assert (embedding[0, :tokens].abs().sum(-1) > 0).all()


def test_embeddings_take_the_type_of_the_networks() -> None:
    unit = prompt_unit()
    engine = fake_engine([unit], models=fake_models(text_encoder=FakeTextEncoder()), dtype=torch.bfloat16)
    assert unit.encode(engine, "a").dtype == torch.bfloat16


def test_a_text_of_megabytes_is_refused_before_it_is_looked_at(catalog: Catalog) -> None:
    unit, text = prompt_unit(), "a " * 10_000_000
    limit = r"'a a .*: string should have at most 100000 characters"
    engine = fake_engine([unit], models=fake_models(text_encoder=FakeTextEncoder()))
    with pytest.raises(InputError, match="the prompt has 20000000 letters; give 100000 at most"):
        unit.encode(engine, text)
    with pytest.raises(InputError, match=rf"unit 'prompt': prompt = {limit}"):
        engine.check_request(request(seconds=1, inputs={"prompt": text}))
    with pytest.raises(PlanError, match=rf"unit 'prompt': negative = {limit}"):
        build_plan("prompt", catalog, {"prompt": {"negative": text}})


def test_a_missing_tokenizer_says_where_it_was_looked_for(tmp_path: Path) -> None:
    unit = prompt_unit(tokenizer=tmp_path / "none")
    engine = fake_engine([unit], models=fake_models(text_encoder=FakeTextEncoder()))
    with pytest.raises(
        CheckpointError,
        match=r"no tokenizer folder at .*none, and none lies in .*; put .* there, or name one with prompt\(",
    ):
        unit.encode(engine, "a")


def test_the_tokenizer_lies_beside_the_text_encoder(tiny_models: Bundle) -> None:
    assert tiny_models.beside("text_encoder", Path("tokenizer")) == TOKENIZER
    assert tiny_models.beside("text_encoder", TOKENIZER) == TOKENIZER


def test_settings(catalog: Catalog) -> None:
    from omniavatar.engine.plan import build_plan

    assert Prompt().settings.negative == NEGATIVE_PROMPT
    (unit,) = build_plan("prompt(negative='blurred, dark (very)')", catalog).units
    assert unit.settings.negative == "blurred, dark (very)"
    with pytest.raises(PlanError, match="unit 'prompt': length = 513: "):
        build_plan("prompt(length=513)", catalog)


def test_a_folder_that_holds_no_tokenizer_is_one_line(tmp_path: Path) -> None:
    unit = prompt_unit(tokenizer=tmp_path)
    engine = fake_engine([unit], models=fake_models(text_encoder=FakeTextEncoder()))
    with pytest.raises(CheckpointError, match=r"no tokenizer can be read from .*; download it again") as caught:
        unit.encode(engine, "a")
    assert "\n" not in str(caught.value)
