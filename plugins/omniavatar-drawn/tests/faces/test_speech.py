"""Synthetic speech: repeatable, varied, with pauses, and honest about a missing program."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from omniavatar_drawn.faces import speech
from omniavatar_drawn.faces.mouth import SAMPLE_RATE, mouth_rows
from omniavatar_drawn.faces.sentences import VOCABULARIES, sentence
from omniavatar_drawn.faces.speech import Voice, resampled, speak, utterance, wear

from omniavatar.errors import InputError

needs_espeak = pytest.mark.skipif(shutil.which(speech.PROGRAM) is None, reason="needs the espeak-ng program")


def tone(seconds: float, hertz: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


@pytest.mark.parametrize("language", VOCABULARIES)
def test_sentences_vary_and_are_complete(language: str) -> None:
    random = np.random.default_rng(0)
    texts = {sentence(language, random) for _ in range(50)}
    assert len(texts) > 40
    assert not any("{" in text for text in texts)


def test_voices_repeat_and_match_the_person() -> None:
    assert Voice.from_seed(3) == Voice.from_seed(3)
    assert len({Voice.from_seed(seed).accent[:2] for seed in range(60)}) == len(VOCABULARIES)
    assert all(Voice.from_seed(seed, "woman").variant in speech._VARIANTS["woman"] for seed in range(20))


@needs_espeak
def test_speech_is_float32_at_16_khz() -> None:
    wave = speak("Good morning, everybody.", Voice("en-us", "f2", 50, 160))
    assert wave.dtype == np.float32
    assert 1.0 < len(wave) / SAMPLE_RATE < 2.5
    assert 0.1 < np.abs(wave).max() <= 1
    spectrum = np.abs(np.fft.rfft(wave)) ** 2
    assert spectrum[: len(spectrum) // 2].sum() > 0.8 * spectrum.sum()


@needs_espeak
def test_utterances_repeat_and_pause() -> None:
    first, again, other = utterance(5, 4.0), utterance(5, 4.0), utterance(6, 4.0)
    assert first.dtype == np.float32
    assert len(first) == 4 * SAMPLE_RATE
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    closed = [(mouth_rows(utterance(seed, 4.0))[:, 0] == 0).mean() for seed in range(4)]
    assert 0.05 < np.mean(closed) < 0.7
    assert np.abs(first).max() <= 1


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "PROGRAM", "espeak-that-is-not-there")
    with pytest.raises(InputError, match=r"espeak-that-is-not-there is not installed.*apt install espeak-ng"):
        speak("Hello", Voice("en-us", "f2", 50, 160))


@needs_espeak
def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(InputError, match="cannot speak with the voice xx-nowhere"):
        speak("Hello", Voice("xx-nowhere", "f2", 50, 160))


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_resampling_keeps_tones(rate: int) -> None:
    result = resampled(tone(0.5, 440, rate), rate, SAMPLE_RATE)
    assert len(result) == SAMPLE_RATE // 2
    assert np.allclose(result[800:-800], tone(0.5, 440)[800:-800], atol=0.01)


def test_resampling_leaves_out_what_would_alias() -> None:
    assert np.abs(resampled(tone(0.5, 7000), SAMPLE_RATE, 8000)).max() < 0.2


def test_wear_keeps_length_and_range_and_is_never_the_same() -> None:
    wave = np.concatenate([np.zeros(4000, np.float32), 0.5 * tone(0.5, 300), np.zeros(4000, np.float32)])
    worn = [wear(wave, np.random.default_rng(seed)) for seed in range(12)]
    assert all(len(w) == len(wave) and w.dtype == np.float32 and np.abs(w).max() <= 1 for w in worn)
    assert len({w.tobytes() for w in worn}) == 12
    assert np.array_equal(worn[3], wear(wave, np.random.default_rng(3)))


def test_silence_survives_wear() -> None:
    worn = wear(np.zeros(8000, np.float32), np.random.default_rng(0))
    assert np.isfinite(worn).all()
    assert np.abs(worn).max() < 1e-3
