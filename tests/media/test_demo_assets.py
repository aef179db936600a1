"""The demo's inputs are what its README says, and small enough to ship."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np

from omniavatar.media.audio import load_waveform, probe_audio
from omniavatar.media.image import load_image

DEMO = files("omniavatar") / "assets" / "demo"


def test_the_portrait_is_a_small_square() -> None:
    with as_file(DEMO / "portrait.png") as path:
        assert path.stat().st_size < 100_000
        assert load_image(path).shape == (512, 512, 3)


def test_the_speech_is_four_seconds_of_16_khz_mono() -> None:
    with as_file(DEMO / "speech.flac") as path:
        assert path.stat().st_size < 100_000
        info, waveform = probe_audio(path), load_waveform(path)
    assert (info.sample_rate, info.channels, waveform.size) == (16000, 1, 64000)
    assert np.abs(waveform[: 3 * 16000].reshape(15, -1)).max(1).min() > 0.05  # speech all the way
    assert np.abs(waveform[-3200:]).max() < 0.01
