"""Sound in: formats, channels, levels, and one clear line for everything that is not a sound."""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omniavatar.errors import InputError
from omniavatar.media import audio, ffmpeg
from omniavatar.media.audio import check_audio, load_waveform, probe_audio
from omniavatar.media.sound import Samples, sound_input
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


# What is in memory


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8000, 16000, 48000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_samples_in_memory_are_those_of_a_file(tmp_path: Path, rate: int, channels: int) -> None:
    sound = np.stack([tone(0.5, rate, hertz=200.0 * (1 + index)) for index in range(channels)], axis=1)
    path = write_wav(tmp_path / "a.wav", sound, rate)
    stored = np.rint(sound * 32767).astype(np.int16)
    expected = load_waveform(path)
    with open(path, "rb") as file:
        given = [
            *(
                (stored, rate),
                (stored.T, rate),
                [torch.from_numpy(stored), rate],
                (stored.astype(np.int32) << 16, rate),
            ),
            *((stored / 32768, float(rate)), (torch.from_numpy(stored / 32768).float().T, np.int64(rate))),
            *(Samples((stored / 32768).astype(np.float32), rate), path.read_bytes(), file),
        ]
        if channels == 1:
            given += [(stored[:, 0], rate)]
        for value in given:
            np.testing.assert_allclose(load_waveform(value), expected, atol=1e-6, err_msg=str(type(value)))
            np.testing.assert_allclose(load_waveform(sound_input(value)), expected, atol=1e-6)
    assert probe_audio((stored, rate)).duration == 0.5


def test_the_bytes_of_a_file_lie_in_one_as_long_as_they_are_held(tmp_path: Path) -> None:
    content = write_wav(tmp_path / "a.wav", tone(0.1, 16000), 16000).read_bytes()
    held = sound_input(content)
    assert isinstance(held, Path)
    name = str(held)
    assert Path(name).read_bytes() == content
    assert sound_input(held) is held
    del held
    assert not Path(name).exists()


def test_loud_samples_in_memory_are_scaled() -> None:
    np.testing.assert_allclose(
        load_waveform((tone(0.5, 16000, level=4.0), 16000)), tone(0.5, 16000, level=1.0), atol=1e-6
    )


SOUND = np.zeros(1000, np.float32)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (SOUND, r"^audio: which sample rate\? give \(samples, sample_rate\) instead of ndarray \(1000,\) float32$"),
        (torch.zeros(2, 1000), "which sample rate"),
        ((16000, SOUND), r"give \(samples, sample_rate\) in this order"),
        ((SOUND, "x"), "a sample rate is a number, not str"),
        ((SOUND, 0), "has 0 samples a second; from 1000 to 1536000 are possible"),
        ((SOUND, float("nan")), "is a whole number, not nan"),
        ((SOUND, 16000.5), "is a whole number, not 16000.5"),
        ((SOUND[:0], 16000), "0 samples"),
        ((SOUND.reshape(10, 100, 1), 16000), r"not \(10, 100, 1\)"),
        ((SOUND[:64].reshape(8, 8), 16000), "and more samples than that"),
        ((np.zeros((1000, 100)), 16000), "up to 64 channels"),
        ((SOUND.astype(np.int64), 16000), "float in .-1, 1., int16 or int32, not int64"),
        ((SOUND + np.nan, 16000), "not finite numbers"),
        (5, r"^audio: a path, bytes, or \(samples, sample_rate\), not int$"),
        (({}, 16000), r"not \(dict, int\)"),
        (b"", "is empty"),
        (b"hello", "of 5 bytes in memory is not a media file"),
        ("", "the path is empty"),
    ],
    ids=str,
)
def test_what_is_no_sound_is_one_line(value: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        load_waveform(value)
    assert len(single_line(caught.value)) < 200


# Limits


def claiming(rate: int, channels: int) -> bytes:
    """A WAV file with these numbers in its header and 4000 bytes of silence."""
    block = channels * 2
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 4036)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data\xa0\x0f\0\0"
        + bytes(4000)
    )


@pytest.mark.parametrize("rate", [1, 999, 2_000_000])
def test_sample_rates_that_no_sound_has(rate: int) -> None:
    with pytest.raises(InputError, match=f"{rate} samples a second; from 1000 to 1536000 are possible"):
        check_audio(claiming(rate, 1))


@pytest.mark.parametrize("channels", [65, 255, 65535])
def test_more_channels_than_there_are(channels: int) -> None:
    with pytest.raises(InputError, match=f"has {channels} channels; from 1 to 64 are possible"):
        check_audio(claiming(16000, channels))


def test_only_what_is_asked_for_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sound that is too long to be read as a whole."""
    monkeypatch.setattr(audio, "MOST_HOURS", 0.01)
    path = tmp_path / "long.flac"
    ffmpeg.run(["-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono", "-t", "60", "-c:a", "flac", ffmpeg.url(path)])
    check_audio(path, seconds=1)
    assert load_waveform(path, seconds=1).shape == (16000,)
    for read in (check_audio, load_waveform):
        with pytest.raises(InputError, match=r"lasts longer than 0\.01 hours; cut it, or say how much is wanted"):
            read(path)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_the_beginning_is_that_of_the_whole(tmp_path: Path, rate: int) -> None:
    sound = noise_burst(2.0, rate, start=0.2)
    whole = load_waveform((sound, rate))
    for value in ((sound, rate), write_wav(tmp_path / "a.wav", sound, rate)):
        part = load_waveform(value, seconds=0.5)
        np.testing.assert_allclose(part, whole[:8000], atol=1e-4)
        assert load_waveform(value, seconds=9).shape == whole.shape


def flac_with(comment: bytes) -> bytes:
    """A FLAC file of silence with a comment, KEY=VALUE, as it stands."""
    making = [
        "-f",
        "lavfi",
        "-i",
        "anullsrc=r=16000:cl=mono",
        "-t",
        "0.5",
        "-fflags",
        "+bitexact",
        "-f",
        "flac",
        "pipe:1",
    ]
    data = bytes(ffmpeg.run(making))
    vendor = struct.pack("<I", 0) + struct.pack("<II", 1, len(comment)) + comment
    blocks: list[tuple[int, bytes]] = []
    place = 4
    while not blocks or not blocks[-1][0] & 0x80:
        length = int.from_bytes(data[place + 1 : place + 4], "big")
        blocks.append((data[place], data[place + 4 : place + 4 + length]))
        place += 4 + length
    kept = [(kind & 0x7F, content) for kind, content in blocks if kind & 0x7F != 4]
    kept.append((0x84, vendor))
    return b"fLaC" + b"".join(bytes([kind]) + len(body).to_bytes(3, "big") + body for kind, body in kept) + data[place:]


FAKE = b"  Stream #0:0: Audio: flac, 7 Hz, 3000000000 channels"


@pytest.mark.parametrize("comment", [FAKE + b"=x", b"comment=x\n" + FAKE, b"comment=x\r" + FAKE])
def test_comments_that_look_like_streams_are_comments(comment: bytes) -> None:
    info = probe_audio(flac_with(comment))
    assert (info.sample_rate, info.channels) == (16000, 1)


@pytest.mark.parametrize("comment", [b"a\n" + FAKE + b"=x", b"a\n  Duration: 00:00:09.00, start: 0\n" + FAKE + b"=x"])
def test_comments_that_break_out_are_refused(comment: bytes) -> None:
    with pytest.raises(InputError, match="metadata that look like ffmpeg's output; rename or convert it") as caught:
        probe_audio(flac_with(comment))
    single_line(caught.value)


def test_a_name_that_looks_like_a_stream_is_refused_or_a_name(tmp_path: Path) -> None:
    path = tmp_path / ("a\n" + FAKE.decode() + "\n.wav")
    write_wav(tmp_path / "a.wav", tone(0.1, 16000), 16000).rename(path)
    with pytest.raises(InputError, match="rename or convert it") as caught:
        probe_audio(path)
    single_line(caught.value)


@pytest.mark.parametrize("beginning", ["ffconcat version 1.0\nfile 'a.wav'\n", "#EXTM3U\n#EXTINF:1,\na.wav\n"])
def test_lists_of_other_files_are_refused(tmp_path: Path, beginning: str) -> None:
    write_wav(tmp_path / "a.wav", tone(0.1, 16000), 16000)
    (tmp_path / "list.mp3").write_text(beginning)
    with pytest.raises(InputError, match=r"list\.mp3' is a list of other files .*; join them to one file"):
        check_audio(tmp_path / "list.mp3")


# Sounds that nobody hears


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("loss", [0.99, 0.8])
def test_channels_that_cancel_each_other(
    tmp_path: Path, rate: int, loss: float, caplog: pytest.LogCaptureFixture
) -> None:
    voice = tone(0.5, rate)
    sound = np.stack([voice * loss, -voice], axis=1)
    for value in ((sound, rate), write_wav(tmp_path / "a.wav", sound, rate)):
        caplog.clear()
        np.testing.assert_allclose(load_waveform(value), -load_waveform((voice, rate)), atol=1e-3)
        assert "its channels cancel each other; channel 2 alone is heard" in caplog.text


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_that_do_not_cancel_are_averaged(channels: int, caplog: pytest.LogCaptureFixture) -> None:
    one = np.zeros((8000, channels), np.float32)
    one[:, 0] = tone(0.5, 16000)
    noises = np.random.default_rng(0).uniform(-0.5, 0.5, (8000, channels)).astype(np.float32)
    for sound in (one, noises):
        np.testing.assert_allclose(load_waveform((sound, 16000)), sound.mean(axis=1), atol=1e-6)
    assert not caplog.records


def test_silence_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_waveform(write_wav(tmp_path / "a.wav", np.zeros(1600, np.float32), 16000))
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, f"audio '{tmp_path / 'a.wav'}' is silent, so the mouth rests")
    ]


@pytest.mark.parametrize(
    "layout", ["FR", "LFE", "FL+FC", "FC+LFE", "BL+BR", "SL+SR", "5.1.2", "cube", "3.1.2", "9 channels"]
)
def test_every_layout_of_speakers_is_read(tmp_path: Path, layout: str) -> None:
    """Whatever speakers a sound is meant for: a filter that asks for a front pair fails for these."""
    path = tmp_path / "given.wav"
    pan = "9C" if layout == "9 channels" else layout
    count = {"FR": 1, "LFE": 1, "5.1.2": 8, "cube": 8, "3.1.2": 6, "9 channels": 9}.get(layout, 2)
    alike = "|".join(f"c{index}=c0" for index in range(count))
    ffmpeg.run(["-f", "lavfi", "-i", f"sine=440:d=0.2,aformat=cl=mono,pan={pan}|{alike}", ffmpeg.url(path)])
    wave = load_waveform(path, 16000)
    assert len(wave) == pytest.approx(3200, abs=20)
    assert np.abs(wave).max() > 0.05
