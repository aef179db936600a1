"""Sounds to train on: varied, repeatable, cut from recordings that are kept in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omniavatar_drawn.encoders import sounds
from omniavatar_drawn.encoders.sounds import Recordings, filtered, sound, tones
from omniavatar_drawn.faces.mouth import SAMPLE_RATE, mouth_rows

from omniavatar.errors import InputError


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    """Three hums with pauses, 4 s each, that need no espeak-ng."""
    time = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    waves = [np.sin(2 * np.pi * pitch * time) * (np.sin(2 * np.pi * time) > 0) for pitch in (300, 400, 700)]
    return Recordings(np.round(np.stack(waves) * 20000).astype(np.int16))


def test_sounds_are_never_the_same_and_always_repeat(recordings: Recordings) -> None:
    made = [sound(recordings, SAMPLE_RATE, np.random.default_rng(seed)) for seed in range(60)]
    assert all(wave.shape == (SAMPLE_RATE,) and wave.dtype == np.float32 for wave in made)
    assert all(np.isfinite(wave).all() and np.abs(wave).max() <= 1 for wave in made)
    assert len({wave.tobytes() for wave in made if wave.any()}) > 50
    assert np.array_equal(made[7], sound(recordings, SAMPLE_RATE, np.random.default_rng(7)))


def test_some_sounds_leave_the_mouth_closed(recordings: Recordings) -> None:
    openings = [
        mouth_rows(sound(recordings, SAMPLE_RATE, np.random.default_rng(seed)))[:, 0].max() for seed in range(80)
    ]
    assert 2 <= sum(opening == 0 for opening in openings) < 40


def test_pieces_change_in_speed(recordings: Recordings) -> None:
    pitches = set()
    for seed in range(30):
        piece = recordings.cut(3 * SAMPLE_RATE, np.random.default_rng(seed))
        assert len(piece) == 3 * SAMPLE_RATE
        pitches.add(round(np.argmax(np.abs(np.fft.rfft(piece))) / 3 / 10))
    assert len(pitches) > 10
    assert min(pitches) >= 0.8 * 30 - 1
    assert max(pitches) <= 1.25 * 70 + 1


def test_filters_keep_the_length_and_change_the_colour() -> None:
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    results = [filtered(noise, np.random.default_rng(seed)) for seed in range(5)]
    assert all(len(result) == len(noise) for result in results)
    assert len({round(float(np.abs(np.diff(result)).mean() / np.abs(result).mean()), 2) for result in results}) == 5


def test_tones_last_as_long_as_asked_for() -> None:
    wave = tones(SAMPLE_RATE, np.random.default_rng(3))
    assert wave.shape == (SAMPLE_RATE,)
    assert wave.any()


def test_recordings_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def utterance(seed: int, seconds: float) -> np.ndarray:
        return np.full(round(seconds * SAMPLE_RATE), seed / 10, np.float32)

    monkeypatch.setattr(sounds, "utterance", utterance)
    path = tmp_path / "run" / "recordings.npy"
    made = Recordings.cached(path, range(3), 0.5)
    monkeypatch.setattr(sounds, "utterance", None)
    again = Recordings.cached(path, range(3), 0.5)
    assert np.array_equal(made.waves, again.waves)
    assert again.waves[2, 0] == round(0.2 * 32767)
    with pytest.raises(
        InputError, match=r"recordings.npy holds recordings of shape \(3, 8000\), needed is \(4, 8000\)"
    ):
        Recordings.cached(path, range(4), 0.5)


def test_pieces_longer_than_the_recordings_are_refused(recordings: Recordings) -> None:
    with pytest.raises(InputError, match="have no piece of 80000; make longer ones"):
        recordings.cut(5 * SAMPLE_RATE, np.random.default_rng(0))
