"""The features of a sound: which time a frame hears, and that length costs no memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_s2v.audio import SAMPLE_RATE, SpeechTrack, feature_row
from torch import Tensor, nn
from transformers import Wav2Vec2Config

from omniavatar.errors import InputError
from omniavatar.media.audio import load_waveform
from omniavatar.models.wav2vec import AudioEncoder, normalize
from omniavatar.resources import asset
from omniavatar.testing import tiny
from tests.models.networks import randomized

HOP = 320


class Ramp(nn.Module):
    """An encoder of one layer whose hidden state is the first sample that it sees. `lengths` keeps the states made."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))
        self.model = SimpleNamespace(config=SimpleNamespace(conv_stride=[5, 64], conv_kernel=[10, 79]))
        self.lengths: list[int] = []

    def conv_features(self, sound: Tensor) -> Tensor:
        return sound.unfold(1, 400, HOP)[..., :1]

    def hidden_states(self, features: Tensor) -> list[Tensor]:
        self.lengths.append(features.shape[1])
        return [features, -features]


def ramp(seconds: float) -> np.ndarray:
    """A sound that rises with time."""
    return np.arange(round(seconds * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE


def seconds_of(values: Tensor, wave: np.ndarray) -> Tensor:
    """Undo the normalisation: the time that each value was taken at."""
    whole = normalize(torch.from_numpy(wave))
    return (values - whole[0]) / (whole[SAMPLE_RATE] - whole[0])


@pytest.mark.parametrize("fps", [16, 25, 30])
def test_a_frame_hears_its_own_time(fps: int) -> None:
    wave = ramp(4)
    track = SpeechTrack(wave, Ramp(), segment=0)
    frames = range(round(3.8 * fps))
    rows = track.rows([feature_row(frame, fps) for frame in frames])
    assert rows.shape == (len(frames), 2, 1)
    times = seconds_of(rows[:, 0, 0], wave)
    wanted = torch.tensor(list(frames)) / fps
    assert (times - wanted).abs().max() < 1.5 / 30, "half a row, and up to one by which aligned ends move the rows"
    assert rows[:, 1].equal(-rows[:, 0])


def test_the_nearest_row_and_of_two_the_even_one() -> None:
    assert [feature_row(frame, 16) for frame in (0, 1, 4, 12)] == [0, 2, 8, 22]
    assert [feature_row(frame, 25) for frame in range(4)] == [0, 1, 2, 4]


def test_rows_outside_the_sound_are_zeros() -> None:
    track = SpeechTrack(ramp(1), Ramp(), segment=0)
    rows = track.rows([-1, 0, track.length - 1, track.length, 1000])
    assert [bool(row.any()) for row in rows] == [False, True, True, False, False]
    assert not track.rows([1000, 1001]).any()


def test_ends_of_rows_and_states_agree() -> None:
    track = SpeechTrack(ramp(2.3), Ramp(), segment=0)
    assert (track.states, track.length) == (114, 68)
    states = track.hidden_states(0, track.states)
    rows = track.rows(range(track.length))
    torch.testing.assert_close(rows[[0, -1]], states[[0, -1]])
    expected = torch.nn.functional.interpolate(states[:, 0].T[None], size=68, mode="linear", align_corners=True)[0].T
    torch.testing.assert_close(rows[:, 0], expected)


def test_ten_minutes_are_encoded_in_pieces_of_bounded_length_each_once() -> None:
    encoder = Ramp()
    wave = ramp(600)
    track = SpeechTrack(wave, encoder, segment=60)
    clips = [track.rows([feature_row(80 * clip + frame, 16) for frame in range(80)]) for clip in range(119)]
    assert len(encoder.lengths) == 10
    assert max(encoder.lengths) == (60 + 2 * 4) * 50
    assert len(track._pieces) <= 2
    whole = SpeechTrack(wave, Ramp(), segment=0).rows([feature_row(frame, 16) for frame in range(119 * 80)])
    torch.testing.assert_close(torch.cat(clips), whole)


def test_pieces_of_a_real_encoder_are_close_to_one_pass() -> None:
    """Its attention sees the whole clip, so pieces differ a little; the margins keep that small."""
    encoder: Any = randomized(AudioEncoder(Wav2Vec2Config(**{**tiny.WAV2VEC, **LAYER_NORM}))).requires_grad_(False)
    voice = np.resize(load_waveform(asset("demo", "speech.flac")), 12 * SAMPLE_RATE)
    whole, exact, pieces = (SpeechTrack(voice, encoder, segment=seconds) for seconds in (0, 12, 5))
    rows = range(whole.length)
    assert whole.rows(rows).shape == (whole.length, 3, 32)
    torch.testing.assert_close(whole.rows(rows), exact.rows(rows))
    difference = (pieces.rows(rows) - whole.rows(rows)).norm() / whole.rows(rows).norm()
    assert 0 < difference < 0.1


LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
"""What the large model has and the tiny one has not."""


def test_a_sound_that_is_too_short_is_refused() -> None:
    with pytest.raises(InputError, match="the sound has 300 samples; give one of a tenth of a second"):
        SpeechTrack(ramp(300 / SAMPLE_RATE), Ramp(), segment=0)
