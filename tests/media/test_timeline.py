"""Pieces of videos: every frame is the one of its number, wherever decoding begins."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omniavatar.errors import InputError
from omniavatar.media import ffmpeg
from omniavatar.media.image import fit_image
from omniavatar.media.timeline import probe_timeline, read_frames
from tests.media.samples import numbered_frames, numbers_in, single_line, tone, write_lossless, write_wav

SIZE = (32, 64)
LONG_GROUPS = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-g", "60", "-keyint_min", "60", "-bf", "3"]
OPEN_GROUPS = [*LONG_GROUPS, "-x264-params", "open-gop=1"]
GAP = ["-vf", "select='not(between(n,40,99))'", "-fps_mode", "vfr"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `lossless.mkv`, 150 numbered pictures, 25 a second."""
    path = tmp_path_factory.mktemp("timeline")
    write_lossless(path / "lossless.mkv", numbered_frames(150, *SIZE))
    return path


def encoded(
    folder: Path, name: str, *options: str, original: str = "lossless.mkv", before: tuple[str, ...] = ()
) -> Path:
    path = folder / name
    if not path.exists():
        ffmpeg.run([*before, "-i", ffmpeg.url(folder / original), *options, ffmpeg.url(path)])
    return path


def numbers(path: Path, start: int, count: int) -> list[int]:
    return numbers_in(read_frames(probe_timeline(path), start, count, fps=25, size=SIZE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("long.mp4", LONG_GROUPS),
        ("open.mp4", OPEN_GROUPS),
        ("long.mkv", LONG_GROUPS),
        ("fragments.mp4", [*LONG_GROUPS, "-movflags", "+frag_keyframe+empty_moov"]),
        ("stream.ts", LONG_GROUPS),
        ("old.avi", ["-c:v", "mpeg4", "-q:v", "2", "-g", "60"]),
        ("vp9.webm", ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "60"]),
    ],
)
def test_frames_are_those_of_their_numbers(folder: Path, name: str, options: list[str]) -> None:
    path = encoded(folder, name, *options)
    timeline = probe_timeline(path)
    assert timeline.frames_at(25) == 150
    assert timeline.size == SIZE
    whole = read_frames(timeline, 0, 150, fps=25, size=SIZE)
    assert numbers_in(whole) == list(range(150))
    for start, count in ((0, 1), (13, 9), (59, 5), (60, 5), (61, 4), (118, 32), (149, 1)):
        piece = read_frames(timeline, start, count, fps=25, size=SIZE)
        assert np.array_equal(piece, whole[start : start + count]), start


def test_decoding_begins_near_the_piece(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    class Noted(ffmpeg.Ffmpeg):
        def __init__(self, arguments: list[str]) -> None:
            super().__init__(arguments)
            calls.append(arguments)

    monkeypatch.setattr(ffmpeg, "Ffmpeg", Noted)
    timeline = probe_timeline(encoded(folder, "long.mp4", *LONG_GROUPS))
    calls.clear()
    read_frames(timeline, 140, 5, fps=25, size=SIZE)
    assert len(calls) == 1
    assert calls[0][calls[0].index("-ss") + 1] == "5.100000"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "suffix"), [("50", "mp4"), ("30", "mp4"), ("30", "mkv"), ("24000/1001", "mkv"), ("5", "mp4")]
)
def test_other_rates_show_the_nearest_picture(folder: Path, rate: str, suffix: str) -> None:
    path = encoded(folder, f"rate-{rate.replace('/', '-')}.{suffix}", *LONG_GROUPS, before=("-r", rate))
    step = 25 / Fraction(rate)
    count = probe_timeline(path).frames_at(25)
    assert count == pytest.approx(float(150 * step), abs=0.51)
    for start in (0, count // 3, count - 9):
        for frame, number in enumerate(numbers(path, start, 9), start):
            shown_at, next_at = float(number * step), float((number + 1) * step)
            assert shown_at <= frame + 0.53, "no picture comes more than half a frame early"
            assert next_at >= frame + 0.47 or number == 149, "nor is it shown when the next one is due"


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_picture_stays_until_the_next_one_of_a_variable_rate(folder: Path, suffix: str) -> None:
    path = encoded(folder, f"variable.{suffix}", *LONG_GROUPS, *GAP)
    assert probe_timeline(path).frames_at(25) == 150
    expected = [number if not 40 <= number <= 99 else 39 for number in range(150)]
    for start in (0, 38, 70, 98, 120):
        assert numbers(path, start, 12) == expected[start : start + 12]


def test_a_cut_that_was_not_encoded_anew_begins_where_a_player_does(folder: Path) -> None:
    encoded(folder, "long.mp4", *LONG_GROUPS)
    path = encoded(folder, "cut.mp4", "-c", "copy", original="long.mp4", before=("-ss", "3"))
    frames = probe_timeline(path).frames_at(25)
    assert frames == 75
    assert numbers(path, 0, 75) == list(range(75, 150))
    assert numbers(path, 62, 5) == list(range(137, 142))


def test_pictures_that_begin_late_count_from_the_first(folder: Path) -> None:
    sound = write_wav(folder / "tone.wav", tone(6, 16000), 16000)
    encoded(folder, "long.mp4", *LONG_GROUPS)
    for name, delays in {"late.mp4": (0, 0.5), "late.mkv": (0, 0.5), "early.mkv": (0.7, 0)}.items():
        path = folder / name
        inputs = [
            ("-itsoffset", str(delay), "-i", ffmpeg.url(file))
            for delay, file in zip(delays, (sound, folder / "long.mp4"), strict=True)
        ]
        ffmpeg.run([*inputs[0], *inputs[1], "-map", "1:v", "-map", "0:a", "-c:v", "copy", ffmpeg.url(path)])
        timeline = probe_timeline(path)
        assert timeline.sound is not None
        assert float(timeline.sound - timeline.start) == pytest.approx(delays[0] - delays[1], abs=0.03)
        assert timeline.frames_at(25) == 150
        assert numbers(path, 100, 5) == list(range(100, 105))
    assert probe_timeline(path, sound=False).sound is None


def test_pictures_are_scaled_and_cropped_as_a_reference_picture_is(tmp_path: Path, portrait: Path) -> None:
    picture = np.array(Image.open(portrait).convert("RGB").resize((301, 405)))
    path = write_lossless(tmp_path / "still.mkv", np.stack([picture] * 2))
    for size in ((160, 96), (96, 160), (128, 128), (480, 400)):
        read = read_frames(probe_timeline(path), 0, 1, fps=25, size=size)[0].astype(float)
        fitted = ((fit_image(picture, size)[0] + 1) * 127.5).permute(1, 2, 0).numpy()
        assert np.abs(read - fitted).mean() < 0.6
        assert np.quantile(np.abs(read - fitted), 0.999) < 4
        shifted = np.abs(read[1:] - fitted[:-1]).mean(), np.abs(read[:, 1:] - fitted[:, :-1]).mean()
        assert min(shifted) > 1.2, "a shift by one pixel would show"


def test_a_rotated_video_is_upright(folder: Path) -> None:
    encoded(folder, "long.mp4", *LONG_GROUPS)
    path = encoded(folder, "turned.mp4", "-c", "copy", original="long.mp4", before=("-display_rotation", "90"))
    timeline = probe_timeline(path)
    assert timeline.size == SIZE[::-1]
    upright = read_frames(timeline, 100, 3, fps=25, size=SIZE[::-1])
    assert numbers_in(np.rot90(upright, -1, (1, 2))) == [100, 101, 102]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_damage_in_the_middle_is_an_error_behind_it_only(folder: Path, tmp_path: Path, suffix: str) -> None:
    content = bytearray(encoded(folder, f"long.{suffix}", *LONG_GROUPS).read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 10] = bytes(len(content) // 10)
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(content)
    assert numbers(path, 10, 5) == list(range(10, 15))
    with pytest.raises(InputError, match="cannot be decoded from frame") as caught:
        numbers(path, 60, 60)
    assert path.name in single_line(caught.value)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_file_that_is_cut_off_gives_what_it_has(folder: Path, tmp_path: Path, suffix: str) -> None:
    whole = encoded(folder, f"front.{suffix}", *LONG_GROUPS, *(["-movflags", "+faststart"] if suffix == "mp4" else []))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    frames = probe_timeline(path).frames_at(25)
    assert 60 < frames < 130
    assert numbers(path, 20, 5) == list(range(20, 25))
    with pytest.raises(InputError, match="cannot be decoded from frame"):
        numbers(path, frames - 2, 10)


def test_what_holds_no_pictures(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "tone.wav", tone(0.2, 16000), 16000)
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    for path, reason in {
        sound: "has no readable video track",
        tmp_path / "text.mp4": "is not a media file",
        tmp_path / "empty.mp4": "is empty",
        tmp_path / "none.mp4": "does not exist",
        tmp_path: "is a folder",
    }.items():
        with pytest.raises(InputError, match=reason) as caught:
            probe_timeline(path)
        single_line(caught.value)
