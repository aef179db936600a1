"""The mouth as a function of the sound."""

from __future__ import annotations

import numpy as np
import pytest
from omniavatar_drawn.faces.mouth import REST_WIDTH, SAMPLE_RATE, mouth_frames, mouth_rows

from omniavatar.errors import InputError

ROW = SAMPLE_RATE // 25


def vowel(seconds: float, *formants: float, pitch: float = 120, level: float = 0.1) -> np.ndarray:
    """Harmonics of a voice that are strong near the formants (samples,)."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.zeros_like(time)
    for harmonic in np.arange(pitch, 4000, pitch):
        gain = sum(1 / (1 + ((harmonic - formant) / 120) ** 2) for formant in formants)
        wave += gain * np.sin(2 * np.pi * harmonic * time)
    result: np.ndarray = level * wave / wave.std()
    return result


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE))


def speech() -> np.ndarray:
    """Syllables and pauses, 4 s."""
    aa, oo, ee = vowel(0.2, 700, 1100), vowel(0.2, 320, 700), vowel(0.2, 350, 2300)
    gap, pause = silence(0.12), silence(0.8)
    return np.concatenate([pause, aa, gap, ee, gap, 0.4 * aa, pause, oo, gap, aa, gap, ee, silence(1.0)])


def test_one_row_for_every_40_ms_begun() -> None:
    assert [len(mouth_rows(np.zeros(n))) for n in (0, 1, ROW, ROW + 1)] == [0, 1, 1, 2]
    rows = mouth_rows(speech())
    assert rows.dtype == np.float32
    assert rows.min() >= 0
    assert rows.max() <= 1


def test_silence_is_exactly_closed() -> None:
    rows = mouth_rows(speech())
    assert (rows[:19, 0] == 0).all()
    assert (rows[-20:, 0] == 0).all()
    assert (rows[-20:, 1] == REST_WIDTH).all()
    assert rows[:, 0].max() > 0.8
    for nothing in (np.zeros(8000), 1e-4 * np.random.default_rng(0).standard_normal(8000)):
        assert (mouth_rows(nothing) == (0, REST_WIDTH)).all()


def test_steady_noise_below_the_voice_is_closed() -> None:
    clean = speech()
    noise = np.random.default_rng(1).standard_normal(len(clean)) * 0.1 * 10 ** (-20 / 20)
    rows, noisy = mouth_rows(clean), mouth_rows(clean + noise)
    assert (noisy[:19, 0] == 0).all()
    assert np.corrcoef(rows[:, 0], noisy[:, 0])[0, 1] > 0.98


@pytest.mark.parametrize("gain", [0.02, 0.3, 4.0])
def test_the_level_does_not_matter(gain: float) -> None:
    assert np.allclose(mouth_rows(speech()), mouth_rows(gain * speech()), atol=1e-3)


def test_long_silence_around_a_word_does_not_matter() -> None:
    word = np.concatenate([vowel(0.3, 700, 1100), silence(0.2), 0.5 * vowel(0.3, 700, 1100)])
    alone = mouth_rows(np.concatenate([silence(0.4), word, silence(0.4)]))
    lost = mouth_rows(np.concatenate([silence(20), word, silence(10)]))
    assert np.allclose(lost[500 - 10 : 500 - 10 + len(alone)], alone, atol=0.05)


def test_louder_is_wider_open() -> None:
    steps = [level * vowel(0.4, 700, 1100) for level in (1, 0.6, 0.3, 0.12)]
    opening = mouth_rows(np.concatenate(steps))[:, 0]
    middles = opening[[5, 15, 25, 35]]
    assert (np.diff(middles) < -0.05).all()


def test_the_mouth_neither_leads_nor_lags() -> None:
    burst = np.concatenate([silence(0.4), vowel(0.2, 700, 1100), silence(0.4)])
    opening = mouth_rows(burst)[:, 0]
    assert (opening[10:15] > 0.5).all()
    assert (opening[:9] == 0).all()
    assert (opening[16:] == 0).all()
    assert opening[9] == pytest.approx(opening[15], abs=0.05)


def test_spread_vowels_are_wide_and_round_ones_narrow() -> None:
    oo, neutral, ee = vowel(0.6, 320, 700), vowel(0.6, 500, 1500), vowel(0.6, 350, 2300)
    width = mouth_rows(np.concatenate([oo, neutral, ee]))[:, 1]
    assert width[7] < 0.3
    assert width[37] > 0.7
    assert width[7] < width[22] < width[37]


def test_hissing_does_not_open_the_mouth() -> None:
    spectrum = np.fft.rfft(np.random.default_rng(2).standard_normal(SAMPLE_RATE // 2))
    spectrum[np.fft.rfftfreq(SAMPLE_RATE // 2, 1 / SAMPLE_RATE) < 4500] = 0
    hiss = np.fft.irfft(spectrum)
    rows = mouth_rows(np.concatenate([vowel(0.5, 700, 1100), 0.1 * hiss / hiss.std()]))
    assert rows[5, 0] > 0.8
    assert rows[20, 0] < 0.05


def test_frame_n_goes_with_row_n_minus_1() -> None:
    wave = speech()
    rows, frames = mouth_rows(wave), mouth_frames(wave, 60)
    assert (frames[0] == (0, REST_WIDTH)).all()
    assert np.array_equal(frames[1:], rows[:59])
    assert (mouth_frames(wave, 300)[len(rows) + 1 :] == (0, REST_WIDTH)).all()


@pytest.mark.parametrize("wave", [np.zeros((2, 800)), np.array([0.1, np.nan])])
def test_other_arrays_are_refused(wave: np.ndarray) -> None:
    with pytest.raises(InputError, match="waveform of shape"):
        mouth_rows(wave)
