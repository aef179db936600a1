"""Sound in: formats, channels, levels, and one clear line for everything that is not a sound."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omniavatar.errors import InputError
from omniavatar.media import ffmpeg
from omniavatar.media.audio import load_waveform, probe_audio
from tests.media.samples import convert, noise_burst, single_line, tone, write_float_wav, write_wav


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100, 48000])
def test_any_rate_becomes_16_khz_with_level_and_length_kept(tmp_path: Path, sample_rate: int) -> None:
    path = write_wav(tmp_path / "tone.wav", tone(1.0, sample_rate), sample_rate)
    waveform = load_waveform(path)
    assert waveform.dtype == np.float32
    assert waveform.shape == (16000,)
    inner = slice(800, -800)  # the resampler's filter rings at the ends
    np.testing.assert_allclose(waveform[inner], tone(1.0, 16000)[inner], atol=2e-3)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "m4a", "mp3", "opus"])
def test_compressed_formats_decode(tmp_path: Path, suffix: str) -> None:
    wav = write_wav(tmp_path / "tone.wav", tone(1.0, 48000), 48000)
    waveform = load_waveform(convert(wav, tmp_path / f"tone.{suffix}"))
    assert abs(waveform.size - 16000) <= 16000 * 0.06  # some of them store whole codec frames only
    assert np.abs(waveform[4000:12000]).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("channels", [2, 6, 9])
def test_mono_is_the_mean_of_all_channels(tmp_path: Path, channels: int) -> None:
    sound = np.zeros((16000, channels), dtype=np.float32)
    sound[:, 0] = tone(1.0, 16000, level=0.9)
    path = write_wav(tmp_path / "tone.wav", sound, 16000)
    assert probe_audio(path).channels == channels
    np.testing.assert_allclose(load_waveform(path), tone(1.0, 16000, level=0.9 / channels), atol=1e-4)


def test_equal_loud_stereo_channels_stay_below_one(tmp_path: Path) -> None:
    loud = tone(0.5, 16000, level=0.95)
    path = write_wav(tmp_path / "loud.wav", np.stack((loud, loud), axis=1), 16000)
    assert np.abs(load_waveform(path)).max() == pytest.approx(0.95, abs=1e-3)


def test_float_files_beyond_one_are_scaled_not_clipped(tmp_path: Path) -> None:
    path = write_float_wav(tmp_path / "hot.wav", tone(0.5, 16000, level=4.0), 16000)
    np.testing.assert_allclose(load_waveform(path), tone(0.5, 16000, level=1.0), atol=1e-3)


def test_probe_tells_what_the_file_holds(tmp_path: Path) -> None:
    sound = np.zeros((44100, 2), dtype=np.float32)
    info = probe_audio(convert(write_wav(tmp_path / "a.wav", sound, 44100), tmp_path / "a.flac"))
    assert (info.sample_rate, info.channels, info.codec) == (44100, 2, "flac")
    assert info.duration == pytest.approx(1.0, abs=0.01)


def test_ten_minutes_in_one_buffer(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "long.wav", np.zeros(600 * 8000, dtype=np.float32), 8000)
    waveform = load_waveform(path)
    assert waveform.shape == (600 * 16000,)
    assert waveform.flags.writeable


@pytest.mark.parametrize("name", ["-x.wav", "concat:a|b.wav", "sp ace.wav", "quo'te\"$(id).wav", "per%d.wav", "é.wav"])
def test_awkward_names_are_only_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_wav(tmp_path / "plain.wav", tone(0.1, 16000), 16000).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert load_waveform(name).size == 1600


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"audio .*nothing\\nhere\.wav' does not exist") as caught:
        load_waveform(tmp_path / "nothing\nhere.wav")
    single_line(caught.value)


def test_folder_pipe_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        load_waveform(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a device or a pipe"):
        load_waveform(tmp_path / "pipe")
    (tmp_path / "zero.wav").touch()
    with pytest.raises(InputError, match="is empty"):
        load_waveform(tmp_path / "zero.wav")
    with pytest.raises(InputError, match="cannot be read"):
        load_waveform("a\0b.wav")


def test_a_text_file_and_noise_are_no_media(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(InputError, match="not a media file") as caught:
        load_waveform(tmp_path / "text.wav")
    single_line(caught.value)
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(100_000))
    with pytest.raises(InputError, match=r"noise\.mp3") as caught:
        load_waveform(tmp_path / "noise.mp3")
    single_line(caught.value)


def test_a_picture_has_no_audio_track(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    with pytest.raises(InputError, match="has no audio track; give a sound file or a video with sound"):
        load_waveform(tmp_path / "picture.png")


def test_zero_samples(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "none.wav", np.zeros(0, dtype=np.float32), 16000)
    with pytest.raises(InputError, match="0 samples"):
        load_waveform(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sample_rate", [16000, 48000])
def test_samples_that_are_no_numbers(tmp_path: Path, value: float, sample_rate: int) -> None:
    sound = tone(0.2, sample_rate)
    sound[1000] = value
    path = write_float_wav(tmp_path / "bad.wav", sound, sample_rate)
    with pytest.raises(InputError, match="not finite numbers"):
        load_waveform(path)


def test_a_truncated_recording_gives_what_is_there(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "cut.wav", tone(1.0, 16000), 16000)
    path.write_bytes(path.read_bytes()[: 44 + 16000])
    assert load_waveform(path).size == 8000


@pytest.mark.parametrize("since", [-0.5, 0.0, 0.75])
def test_the_first_sample_can_be_that_of_a_time(tmp_path: Path, since: float) -> None:
    for rate in (16000, 44100):
        burst = write_wav(tmp_path / "burst.wav", noise_burst(2.0, rate, start=1.0), rate)
        late = tmp_path / "late.mka"
        ffmpeg.run(["-i", ffmpeg.url(burst), "-af", "asetpts=PTS+0.25/TB", "-c:a", "flac", ffmpeg.url(late)])
        loud = np.flatnonzero(np.abs(load_waveform(late, since=since)) > 0.05)
        assert loud[0] / 16000 == pytest.approx(1.25 - since, abs=0.002)


def test_a_gap_in_the_time_stamps_is_silence_where_times_count(tmp_path: Path) -> None:
    burst = write_wav(tmp_path / "burst.wav", noise_burst(4.0, 16000, start=3.0), 16000)
    gap = tmp_path / "gap.mka"
    ffmpeg.run(["-i", ffmpeg.url(burst), "-af", "aselect='not(between(t,1,2))'", "-c:a", "pcm_s16le", ffmpeg.url(gap)])
    for since, expected in ((None, 2.0), (0.0, 3.0)):
        loud = np.flatnonzero(np.abs(load_waveform(gap, since=since)) > 0.05)
        assert loud[0] / 16000 == pytest.approx(expected, abs=0.08 if since is None else 0.02)
