"""Clips from files: pictures and sound that belong together, and what makes a clip unusable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omniavatar.errors import InputError
from omniavatar.media import ffmpeg
from omniavatar.training.data.clip import Clip, Limits, Unusable, open_clip, random_piece
from omniavatar.training.data.lists import Entry
from tests.media.samples import (
    gradient_frames,
    numbered_frames,
    numbers_in,
    single_line,
    tone,
    write_lossless,
    write_wav,
)

RATE = 48000
FLASH = 1.2
LIMITS = Limits(sizes=((32, 64), (64, 64)), quietest=None)
H264 = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "18", "-bf", "3"]


def entry(video: Path, audio: Path | None = None) -> Entry:
    return Entry(video, audio, "Hello", video.name)


def opened(video: Path, audio: Path | None = None, **limits: Any) -> Clip:
    return open_clip(entry(video, audio), Limits(**{**LIMITS.model_dump(), **limits}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a silent `dark.mkv` of 2 s with a flash at FLASH, and `clip.mp4` of 50 numbered pictures with a tone."""
    path = tmp_path_factory.mktemp("clips")
    frames = np.full((60, 32, 64, 3), 20, np.uint8)
    frames[round(FLASH * 30)] = 240
    write_lossless(path / "dark.mkv", frames, fps=30)
    write_lossless(path / "numbers.mkv", numbered_frames(50, 32, 64))
    sound = write_wav(path / "tone.wav", tone(2, RATE), RATE)
    join(path / "numbers.mkv", sound, path / "clip.mp4")
    return path


def join(video: Path, sound: Path, path: Path, *, late: float = 0, video_late: float = 0) -> Path:
    """One file of both, each beginning as many seconds late."""
    inputs = ["-itsoffset", str(video_late), "-i", ffmpeg.url(video), "-itsoffset", str(late), "-i", ffmpeg.url(sound)]
    ffmpeg.run([*inputs, "-map", "0:v", "-map", "1:a", *H264, ffmpeg.url(path)])
    return path


def click(path: Path, at: float) -> Path:
    """2 s of silence with a click."""
    sound = np.zeros(2 * RATE, np.float32)
    sound[round(at * RATE) : round(at * RATE) + 48] = 0.9
    return write_wav(path, sound, RATE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "late", "video_late"),
    [
        ("together.mp4", 0, 0),
        ("late.mov", 0.5, 0),
        ("late.mkv", 0.513, 0),
        ("late.mp4", 0.5, 0),
        ("early.mov", 0, 0.5),
        ("early.mkv", 0, 0.377),
        ("early.mp4", 0, 0.377),
        ("stream.ts", 0.3, 0),
    ],
)
def test_a_click_is_heard_when_its_flash_is_seen(
    folder: Path, tmp_path: Path, name: str, late: float, video_late: float
) -> None:
    sound = click(tmp_path / "click.wav", FLASH - late + video_late)
    clip = opened(join(folder / "dark.mkv", sound, tmp_path / name, late=late, video_late=video_late), heard=0.5)
    wave = clip.sound()
    assert clip.frames == 50
    assert wave.shape == (50 * 640,)
    assert wave.dtype == np.float32
    flash = clip.pictures(0, 50).mean((1, 2, 3)).argmax() / 25
    assert abs(flash - np.abs(wave).argmax() / 16000) < 0.02
    assert abs(flash - FLASH) < 0.001


def test_a_sound_of_its_own_begins_with_the_first_frame(folder: Path, tmp_path: Path) -> None:
    late = join(folder / "dark.mkv", folder / "tone.wav", tmp_path / "late.mkv", video_late=0.5)
    wave = opened(late, click(tmp_path / "click.wav", FLASH)).sound()
    assert abs(np.abs(wave).argmax() / 16000 - FLASH) < 0.002


def test_the_sound_is_as_long_as_the_pictures(folder: Path, tmp_path: Path) -> None:
    for seconds in (1.9, 5.0):
        sound = write_wav(tmp_path / "tone.wav", tone(seconds, RATE), RATE)
        wave = opened(folder / "clip.mp4", sound).sound()
        assert wave.size == 50 * 640
        assert (wave[-1500:].max() == 0) == (seconds < 2)


def test_pictures_come_at_the_size_of_the_bucket(folder: Path) -> None:
    clip = opened(folder / "clip.mp4")
    assert (clip.size, clip.bucket, clip.seconds) == ((32, 64), (32, 64), 2.0)
    assert numbers_in(clip.pictures(7, 5)) == [7, 8, 9, 10, 11]
    assert clip.pictures(49, 1, (16, 16)).shape == (1, 16, 16, 3)
    assert opened(folder / "clip.mp4", sizes=((96, 96), (64, 32), (16, 48))).bucket == (16, 48)
    for start, count in ((-1, 5), (48, 3), (3, 0)):
        with pytest.raises(ValueError, match="not within the clip's 50"):
            clip.pictures(start, count)


@pytest.mark.parametrize(
    ("kind", "limits", "message"),
    [
        ("too short", {"min_frames": 53}, r"has 50 frames at 25 a second; the least is 53 \(min_frames\)"),
        ("too small", {"sizes": ((64, 128),)}, r"64x32 would be made 2.00 times larger for 128x64; the most is 1.5"),
        ("silent", {"quietest": -3}, r"is silent: -9 dB; the least is -3 dB \(quietest\)"),
    ],
)
def test_limits(folder: Path, kind: str, limits: dict[str, Any], message: str) -> None:
    with pytest.raises(Unusable, match=message) as caught:
        opened(folder / "clip.mp4", **limits).sound()
    assert caught.value.kind == kind
    assert "clip.mp4" in single_line(caught.value)


def test_silence_is_refused_below_a_level(folder: Path, tmp_path: Path) -> None:
    audible, hum = (write_wav(tmp_path / f"{level}.wav", tone(2, RATE, level=level), RATE) for level in (0.01, 0.001))
    opened(folder / "clip.mp4", audible, quietest=-50).sound()
    with pytest.raises(Unusable, match="is silent: -63 dB"):
        opened(folder / "clip.mp4", hum, quietest=-50).sound()
    zeros = write_wav(tmp_path / "zeros.wav", np.zeros(2 * RATE), RATE)
    with pytest.raises(Unusable, match="is silent: -200 dB"):
        opened(folder / "clip.mp4", zeros, quietest=-100).sound()
    assert opened(folder / "clip.mp4", zeros).sound().max() == 0


def test_sound_that_covers_too_little(folder: Path, tmp_path: Path) -> None:
    brief = write_wav(tmp_path / "brief.wav", tone(0.5, RATE), RATE)
    with pytest.raises(Unusable, match=r"brief\.wav' covers 25% of 2\.00 s of pictures; the least is 90% \(heard\)"):
        opened(folder / "clip.mp4", brief).sound()
    late = join(folder / "numbers.mkv", folder / "tone.wav", tmp_path / "late.mkv", late=1)
    with pytest.raises(Unusable, match="covers 50%") as caught:
        opened(late).sound()
    assert caught.value.kind == "sound too short"
    assert opened(late, heard=0.4).sound()[16000 - 400 :].max() > 0.3


def test_a_video_without_sound_is_refused_or_silent(folder: Path) -> None:
    with pytest.raises(Unusable, match="has no sound; name one, or take it as silence") as caught:
        opened(folder / "numbers.mkv")
    assert caught.value.kind == "no sound"
    wave = opened(folder / "numbers.mkv", no_sound="silence", quietest=-50).sound()
    assert (wave.shape, wave.max()) == ((50 * 640,), 0)


def test_files_that_are_missing_or_no_media(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("hello")
    for video, audio in ((tmp_path / "none.mp4", None), (folder / "clip.mp4", tmp_path / "none.wav")):
        with pytest.raises(Unusable, match=r"none\.(mp4|wav)' does not exist") as caught:
            opened(video, audio)
        assert caught.value.kind == "missing file"
    for video, audio in ((text, None), (folder / "clip.mp4", tmp_path), (folder / "tone.wav", None)):
        with pytest.raises(InputError):
            opened(video, audio)
    with pytest.raises(InputError, match="not a media file"):
        opened(folder / "clip.mp4", text).sound()


def test_sizes_that_no_network_takes() -> None:
    with pytest.raises(ValueError, match=r"\[30, 64\] is not made of positive multiples of 16"):
        Limits(sizes=((30, 64),))


def test_random_pieces_fit() -> None:
    draw = torch.Generator().manual_seed(0)
    starts = [random_piece(30, 21, 4, draw) for _ in range(200)]
    assert {piece.start for piece in starts} == set(range(10))
    assert {piece.count for piece in starts} == {21}
    assert {random_piece(frames, 21, 4, draw).count for frames in (17, 18, 19, 20)} == {17}
    assert random_piece(21, 21, 4, draw).samples == slice(0, 21 * 640)
    assert random_piece(1, 21, 4, draw).count == 1
    with pytest.raises(ValueError, match="20 frames is not 4n"):
        random_piece(30, 20, 4, draw)


def test_opening_looks_at_the_ends_of_a_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is not read through: ffmpeg is only ever asked for one picture and for the last second."""
    path = write_lossless(tmp_path / "clip.mkv", gradient_frames(30, 32, 64))
    calls: list[list[str]] = []
    run = ffmpeg.run

    def noted(arguments: list[str]) -> bytearray:
        calls.append(arguments)
        return run(arguments)

    monkeypatch.setattr(ffmpeg, "run", noted)
    assert opened(path, no_sound="silence").frames == 30
    assert len(calls) == 2
    assert "trim=end_frame=1" in calls[0]
    assert "-sseof" in calls[1]
