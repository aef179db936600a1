"""Training an audio encoder: it learns to hear mouths, and what it saves is a wav2vec2 folder the engine loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_drawn.encoders.audio_encoder import (
    CONFIG,
    AudioEncoderSettings,
    AudioEncoderTask,
    Listener,
    new_encoder,
    with_neighbours,
)
from omniavatar_drawn.encoders.sounds import Recordings
from omniavatar_drawn.faces.mouth import SAMPLE_RATE, mouth_rows
from omniavatar_drawn.reading.detector import correlation

from omniavatar.errors import InputError
from omniavatar.models.wav2vec import AudioEncoder, normalize
from omniavatar.training.trainer import Settings, Trainer, generator

SMALL: dict[str, Any] = {
    **CONFIG,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def hum(seed: int, seconds: float = 4.0) -> np.ndarray:
    """Syllables of random length, pitch and loudness (samples,), with pauses."""
    random = np.random.default_rng(seed)
    wave: list[np.ndarray] = []
    while sum(map(len, wave)) < seconds * SAMPLE_RATE:
        time = np.arange(round(random.uniform(0.1, 0.3) * SAMPLE_RATE)) / SAMPLE_RATE
        wave += [
            random.uniform(0.1, 0.6) * np.sin(2 * np.pi * random.uniform(300, 800) * time),
            np.zeros(round(random.uniform(0.1, 0.4) * SAMPLE_RATE)),
        ]
    return np.concatenate(wave)[: round(seconds * SAMPLE_RATE)].astype(np.float32)


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    return Recordings(np.stack([np.round(hum(seed) * 32767).astype(np.int16) for seed in range(6)]))


def task(recordings: Recordings) -> AudioEncoderTask:
    settings = AudioEncoderSettings(shortest=1.0, longest=1.0, seconds=4.0)
    return AudioEncoderTask(new_encoder(SMALL), recordings, settings)


@pytest.mark.slow
def test_it_learns_and_saves_a_folder(recordings: Recordings, tmp_path: Path) -> None:
    learner = task(recordings)
    losses: list[float] = []
    settings = Settings(steps=40, learning_rate=0.01, log_every=10)
    Trainer(learner, settings, tmp_path, listeners=[lambda report: losses.append(report.loss)]).run()
    assert losses[-1] < 0.7 * losses[0]
    loaded = AudioEncoder.from_folder(tmp_path / "wav2vec2")
    assert next(loaded.parameters()).dtype == torch.float32
    assert loaded.feature_dim == 16 * 3
    sound = normalize(torch.from_numpy(hum(9)))[None]
    with torch.inference_mode():
        expected = learner.encoder(sound, 100)
        assert (loaded(sound, 100) - expected).abs().mean() < 0.01
        assert expected.std() > 0.3


def test_batches_have_one_truth_for_every_row(recordings: Recordings) -> None:
    settings = AudioEncoderSettings(shortest=0.5, longest=3.0, seconds=6.0)
    learner = AudioEncoderTask(new_encoder(SMALL), recordings, settings)
    batches = [learner.batch(generator(seed)) for seed in range(6)]
    for batch in batches:
        sounds, mouths = batch["sounds"], batch["mouths"]
        assert sounds.shape == (len(mouths), mouths.shape[1] * 640)
        assert 2 <= len(mouths) <= 12
        assert 4 <= sounds.numel() / SAMPLE_RATE <= 8
    assert len({batch["sounds"].shape[1] for batch in batches}) > 3
    assert torch.equal(batches[0]["sounds"], learner.batch(generator(0))["sounds"])


def test_rows_meet_their_neighbours() -> None:
    rows = torch.arange(6.0).view(1, 3, 2)
    before, here, after = with_neighbours(rows).unbind(2)
    assert torch.equal(here, rows)
    assert before[0, :, 0].tolist() == [0, 0, 2]
    assert after[0, :, 0].tolist() == [2, 4, 4]


def test_the_width_of_closed_mouths_does_not_count(recordings: Recordings) -> None:
    learner = task(recordings)
    batch = dict(learner.batch(generator(0)))
    batch["mouths"] = torch.stack([torch.zeros(4, 25), torch.full((4, 25), 0.5)], dim=-1)
    rest = float(learner.loss(batch).detach())
    batch["mouths"][..., 1] = 0.9
    assert float(learner.loss(batch).detach()) == rest
    batch["mouths"][..., 0] = 1.0
    assert float(learner.loss(batch).detach()) > rest


def test_some_channels_tell_quiet_sounds_from_loud_ones() -> None:
    encoder = new_encoder(SMALL)
    noise = torch.randn(1, SAMPLE_RATE, generator=generator(1))
    first = encoder.model.feature_extractor.conv_layers[0]
    encoder(noise, 25).square().sum().backward()
    gradient = first.conv.weight.grad
    assert not gradient[:2].any()
    assert gradient[2:].any()
    with torch.inference_mode():
        loud, quiet = (first(level * noise[None]).std(dim=-1)[0] for level in (1.0, 0.2))
    assert (quiet[:2] < 0.7 * loud[:2]).all()
    torch.testing.assert_close(quiet[2:], loud[2:], rtol=0.01, atol=0.01)


class Loudness:
    """Stands for an encoder: the feature of a row is its root mean square."""

    def __call__(self, sounds: torch.Tensor, rows: int) -> torch.Tensor:
        power: torch.Tensor = sounds.unflatten(1, (rows, -1)).square().mean(dim=-1, keepdim=True)
        return power.sqrt()


def test_a_listener_is_scored_by_what_features_tell() -> None:
    waves = [hum(seed) for seed in range(8)]
    encoder: Any = Loudness()
    scores = Listener(encoder, waves[:4]).scores(waves[4:])
    assert scores.opening > 0.7
    assert scores.silence < 0.1
    encoder = lambda sounds, rows: torch.zeros(1, rows, 1)  # noqa: E731
    assert Listener(encoder, waves[:4]).scores(waves[4:]).opening == 0
    assert Listener(encoder, waves[:4]).hear(waves[4]).shape == mouth_rows(waves[4]).shape


def test_correlations_of_constants_are_zero() -> None:
    assert correlation(np.ones(4), np.arange(4)) == 0
    assert correlation(np.arange(4), -np.arange(4)) == pytest.approx(-1)


def test_lengths_in_the_wrong_order_are_refused(recordings: Recordings) -> None:
    with pytest.raises(InputError, match=r"shortest sound, 3\.0 s, is longer than the longest"):
        AudioEncoderTask(new_encoder(SMALL), recordings, AudioEncoderSettings(shortest=3, longest=2))
