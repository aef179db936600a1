"""A whole clip: pictures, sound, caption and truth belong together."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from omniavatar_drawn.faces import caption
from omniavatar_drawn.faces.clips import Clip, write_wave
from omniavatar_drawn.faces.mouth import SAMPLE_RATE, mouth_frames


def chirp(seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * 500 * time) * np.maximum(0, np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def test_a_clip_repeats_and_its_parts_agree() -> None:
    clip, again = (Clip.from_seed(4, 17, chirp(2.0)) for _ in range(2))
    assert len(clip.waveform) == 16 * SAMPLE_RATE // 25
    assert np.array_equal(clip.mouth, mouth_frames(clip.waveform, 17))
    assert clip.caption == caption(clip.who, clip.performance)
    pictures = clip.pictures(64)
    assert pictures.shape == (17, 64, 64, 3)
    assert np.array_equal(pictures, again.pictures(64))


def test_a_short_sound_is_filled_up_with_silence() -> None:
    clip = Clip.from_seed(4, 51, chirp(1.0))
    assert len(clip.waveform) == 2 * SAMPLE_RATE
    assert clip.mouth[:26, 0].max() > 0.5
    assert (clip.mouth[28:, 0] == 0).all()


def test_a_wave_file_holds_the_samples(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", np.array([0.0, 0.5, -1.0, 2.0], np.float32))
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (SAMPLE_RATE, 1, 4)
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 16383, -32767, 32767]
