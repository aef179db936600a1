"""Video out: exact frames and sound, a place that is tried first, and finished frames that nothing takes away."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from omniavatar.errors import InputError, OutputError
from omniavatar.media import ffmpeg
from omniavatar.media.audio import load_waveform, probe_audio
from omniavatar.media.sound import Samples
from omniavatar.media.soundtrack import remixed
from omniavatar.media.video import probe_video, read_video
from omniavatar.media.writer import (
    METADATA_KEYS,
    Soundtrack,
    VideoWriter,
    check_output,
    read_metadata,
    signals_deferred,
)
from tests.media.samples import convert, gradient_frames, noise_burst, single_line, tone, write_wav

FPS = 25
DELAY = 1 / FPS + 0.3
RATE = 48000
SIZE: dict[str, Any] = {"width": 48, "height": 32, "fps": FPS}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An output folder in which a test may leave visible files only."""
    yield tmp_path
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a terminal, also where the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def write_clip(
    path: Path,
    count: int = 10,
    *,
    size: tuple[int, int] = (32, 48),
    fps: float = FPS,
    sound: Soundtrack | None = None,
    **options: Any,
) -> Path:
    with VideoWriter(path, width=size[1], height=size[0], fps=fps, soundtrack=sound, **options) as writer:
        writer.write(gradient_frames(count, *size))
    return path


def noise(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames that hardly compress: (count, height, width, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def sound_as_played(path: Path, channels: int = 1) -> np.ndarray:
    """The sound at its time stamps, as a player places it against the pictures: (samples, channels) at `RATE`."""
    placed = ["-map", "0:a:0", "-af", "aresample=async=1:first_pts=0", "-ar", str(RATE), "-ac", str(channels)]
    played = ffmpeg.run(["-i", ffmpeg.url(path), *placed, "-f", "f32le", "-"])
    return np.frombuffer(played, dtype="<f4").reshape(-1, channels)


def burst_starts_at(sound: np.ndarray, burst: np.ndarray) -> float:
    """Seconds at which `burst` begins in `sound`, by the peak of the cross-correlation."""
    length = sound.size + burst.size
    correlation = np.fft.irfft(np.fft.rfft(sound.ravel(), length) * np.fft.rfft(burst, length).conj(), length)
    return int(np.abs(correlation[: sound.size]).argmax()) / RATE


def hidden(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*/*"))


def plays(path: Path) -> int:
    """Frames that can be decoded."""
    return len(read_video(path))


# Sound


@pytest.mark.parametrize(
    ("suffix", "sample_rate", "channels"), [("wav", 16000, 1), ("mp3", 44100, 2), ("flac", 48000, 1), ("mp4", 48000, 2)]
)
def test_sound_is_in_sync(folder: Path, suffix: str, sample_rate: int, channels: int) -> None:
    burst_file = write_wav(folder / "burst.wav", noise_burst(0.1, sample_rate, start=0.0), sample_rate)
    sound = np.stack([noise_burst(3.0, sample_rate, start=1.0)] * channels, axis=1)
    original = write_wav(folder / "original.wav", sound, sample_rate)
    given = original if suffix == "wav" else convert(original, folder / f"given.{suffix}")

    talk = write_clip(folder / "talk.mp4", 75, sound=Soundtrack(given, DELAY), duration=3.0)

    offset = burst_starts_at(sound_as_played(talk), load_waveform(burst_file, RATE)) - (1.0 + DELAY)
    assert abs(offset) < 0.005
    info, heard = probe_video(talk), probe_audio(talk)
    assert (info.frames, info.duration, info.has_audio) == (75, 3.0, True)
    assert (heard.sample_rate, heard.channels, heard.codec) == (sample_rate, channels, "aac")
    assert ", start: 0.000000" in ffmpeg.describe(talk, "video")


@pytest.mark.parametrize("duration", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("frames", [1, 13, 50])
def test_pictures_and_sound_end_together_and_an_impulse_stays_in_its_place(
    folder: Path, rate: int, frames: int, duration: bool
) -> None:
    seconds, at = frames / FPS, 0.75 * frames / FPS
    samples = np.zeros((rate * 3, 1), np.float32)
    samples[round(rate * (at - 0.01))] = 0.9
    talk = write_clip(
        folder / "talk.mp4",
        frames,
        sound=Soundtrack(Samples(samples, rate), delay_seconds=0.01),
        duration=seconds if duration else None,
    )
    heard = sound_as_played(talk)
    assert np.abs(heard).argmax() / RATE == pytest.approx(at, abs=0.001)
    assert len(heard) / RATE == pytest.approx(seconds, abs=0.003)
    assert ffmpeg.count_packets(talk) == frames
    assert probe_video(talk).duration == pytest.approx(seconds, abs=0.011)


def test_a_track_that_begins_late_is_placed_as_the_model_hears_it(folder: Path) -> None:
    """A clip whose sound starts 0.5 s after its pictures: both ways count from the first sample."""
    burst = write_wav(folder / "burst.wav", noise_burst(2.0, RATE, start=1.0), RATE)
    silent = write_clip(folder / "silent.mp4", 75)
    late = folder / "late.mp4"
    ffmpeg.run(
        ["-i", ffmpeg.url(silent), "-itsoffset", "0.5", "-i", ffmpeg.url(burst), "-c:v", "copy", ffmpeg.url(late)]
    )
    pattern = noise_burst(0.1, RATE, start=0.0)
    assert burst_starts_at(sound_as_played(late), pattern) == pytest.approx(1.5, abs=0.005)
    heard_at = burst_starts_at(load_waveform(late, RATE), pattern)
    talk = write_clip(folder / "talk.mp4", 75, sound=Soundtrack(late, DELAY))
    assert burst_starts_at(sound_as_played(talk), pattern) == pytest.approx(heard_at + DELAY, abs=0.005)


@pytest.mark.parametrize("duration", [1.2, None])
@pytest.mark.parametrize("seconds", [0.2, 5.0])
def test_the_video_decides_the_length(folder: Path, seconds: float, duration: float | None) -> None:
    sound = write_wav(folder / "tone.wav", tone(seconds, 16000), 16000)
    talk = write_clip(folder / "talk.mp4", 30, sound=Soundtrack(sound, DELAY), duration=duration)
    info = probe_video(talk)
    assert (info.frames, info.duration) == (30, 1.2)
    assert len(sound_as_played(talk)) == pytest.approx(1.2 * RATE, abs=2)


@pytest.mark.parametrize("start", [0.5, 1.5, 9.0])
def test_a_video_that_goes_on_in_the_middle_leaves_out_the_sound_before(folder: Path, start: float) -> None:
    sound = write_wav(folder / "burst.wav", noise_burst(3.0, RATE, start=1.0), RATE)
    for duration in (1.2, None):
        track = Soundtrack(sound, DELAY, start_seconds=start)
        talk = write_clip(folder / "talk.mp4", 30, sound=track, duration=duration)
        heard = sound_as_played(talk)
        assert len(heard) == pytest.approx(1.2 * RATE, abs=2)
        if start == 0.5:
            found = burst_starts_at(heard, noise_burst(0.1, RATE, start=0.0))
            assert found == pytest.approx(1.0 + DELAY - start, abs=0.001)
        else:
            assert np.abs(heard).max() < 0.01


@pytest.mark.parametrize(
    ("sample_rate", "channels", "expected"),
    [(192000, 2, (48000, 2)), (96000, 1, (48000, 1)), (11111, 1, (48000, 1)), (8000, 9, (8000, 1))],
)
def test_sound_that_aac_cannot_hold_is_converted(
    folder: Path, sample_rate: int, channels: int, expected: tuple[int, int]
) -> None:
    sound = np.stack([tone(0.4, sample_rate)] * channels, axis=1)
    given = write_wav(folder / "given.wav", sound, sample_rate)
    talk = write_clip(folder / "talk.mp4", sound=Soundtrack(given))
    info = probe_audio(talk)
    assert (info.sample_rate, info.channels) == expected
    assert 0.4 < np.abs(sound_as_played(talk)).max() < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "channels"),
    [
        *(("FL", 1), ("FR", 1), ("LFE", 1), ("BC", 1), ("FL+FC", 2), ("FC+LFE", 2), ("BL+BR", 2), ("SL+SR", 2)),
        *(("3.1.2", 2), ("5.1.2", 2), ("cube", 2), ("9.1.4", 2)),
        *(("5.1(side)", 6), ("quad", 4), ("7.1", 8), ("mono", 1), ("2.1", 3)),
    ],
)
def test_every_layout_of_speakers_is_heard(folder: Path, layout: str, channels: int) -> None:
    given = folder / "given.wav"
    ffmpeg.run(
        [
            "-f",
            "lavfi",
            "-i",
            f"anoisesrc=d=0.4:a=0.5,aformat=cl=mono,pan={layout}|{_all_alike(layout)}",
            ffmpeg.url(given),
        ]
    )
    talk = write_clip(folder / "talk.mp4", sound=Soundtrack(given))
    assert probe_audio(talk).channels == channels
    assert np.abs(sound_as_played(talk)).max() > 0.1


def _all_alike(layout: str) -> str:
    """A channel map of the pan filter that feeds every speaker of a layout."""
    numbers = [int(number) for number in re.findall(r"\d", layout)] or [layout.count("+") + 1]
    count = {"cube": 8, "quad": 4, "mono": 1}.get(layout, sum(numbers))
    return "|".join(f"c{channel}=c0" for channel in range(count))


def test_ambisonic_sound_has_its_left_and_right(folder: Path) -> None:
    given = folder / "given.opus"
    from_the_left = "anoisesrc=d=0.5:a=0.5,pan=ambisonic 1|c0=c0|c1=c0|c2=0*c0|c3=0*c0"
    ffmpeg.run(["-f", "lavfi", "-i", from_the_left, "-c:a", "libopus", "-mapping_family", "2", ffmpeg.url(given)])
    heard = np.abs(sound_as_played(write_clip(folder / "talk.mp4", sound=Soundtrack(given)), channels=2)).mean(0)
    assert heard[0] > 10 * heard[1]


def test_speakers_go_to_their_side() -> None:
    assert remixed("2 channels (FL+FC)") == ["pan=stereo|c0<c0+c1|c1<c1"]
    assert remixed("3 channels (LFE+BR+BL)") == ["channelmap=2|1:stereo"]
    assert remixed("2 channels (FC+LFE)") == ["channelmap=0|0:stereo"]
    assert remixed("2 channels (FL+LFE)") == ["pan=mono|c0<c0+c1"]
    assert remixed("binaural") == ["channelmap=0|1:stereo"]
    assert remixed("stereo") == remixed("5.1(side)") == []
    with pytest.raises(ValueError, match="has 65 channels, and 64 are the most"):
        remixed("65 channels")


def test_the_sound_may_vanish_once_the_writer_is_open(folder: Path) -> None:
    sound = write_wav(folder / "tone.wav", tone(1.0, 16000), 16000)
    with VideoWriter(folder / "a.mp4", **SIZE, soundtrack=Soundtrack(sound), duration=0.4) as writer:
        sound.write_bytes(b"something else")
        writer.write(gradient_frames(10, 32, 48))
    assert np.abs(sound_as_played(folder / "a.mp4")).max() > 0.4


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_sound_in_memory(folder: Path, channels: int) -> None:
    samples = np.stack([tone(0.4, 22050)] * channels, axis=1)
    talk = write_clip(folder / "talk.mp4", sound=Soundtrack(Samples(samples, 22050)), duration=0.4)
    info = probe_audio(talk)
    assert (info.sample_rate, info.channels) == (22050, {1: 1, 2: 2, 5: 1}[channels])
    assert 0.4 < np.abs(sound_as_played(talk, info.channels)).max() < 0.6


def test_a_sound_in_memory_longer_than_the_video_is_cut(folder: Path) -> None:
    talk = write_clip(
        folder / "talk.mp4", sound=Soundtrack(Samples(np.zeros((RATE * 60, 2), np.float32), RATE)), duration=0.4
    )
    assert probe_video(talk).duration == 0.4


def test_a_bad_soundtrack_is_found_before_any_work(folder: Path) -> None:
    (folder / "text.wav").write_text("hello")
    write_clip(folder / "silent.mp4", 2)
    finite = np.zeros((4, 1), np.float32)
    reasons: dict[Path | Samples, str] = {
        folder / "none.wav": "does not exist",
        folder / "text.wav": "not a media file",
        folder / "silent.mp4": "has no audio track",
        Samples(finite[:, 0], 16000): "shape",
        Samples(finite[:0], 16000): "shape",
        Samples(finite * np.nan, 16000): "finite",
        Samples(finite, 0): "1 Hz or more",
    }
    for source, reason in reasons.items():
        with pytest.raises(InputError, match=reason) as caught:
            VideoWriter(folder / "a.mp4", **SIZE, soundtrack=Soundtrack(source), duration=1.0)
        single_line(caught.value)
    assert sorted(os.listdir(folder)) == ["silent.mp4", "text.wav"]


def test_a_tag_that_looks_like_a_stream_is_not_taken_for_one(folder: Path) -> None:
    sound = write_wav(folder / "plain.wav", tone(0.4, 16000), 16000)
    spoofed = folder / "spoofed.flac"
    tag = "  Stream #0:0: Audio: flac, 7 Hz, 3000000000 channels"
    ffmpeg.run(["-i", ffmpeg.url(sound), "-metadata", f"{tag}=x", ffmpeg.url(spoofed)])
    info = probe_audio(write_clip(folder / "talk.mp4", sound=Soundtrack(spoofed)))
    assert (info.sample_rate, info.channels) == (16000, 1)


# Pictures


@pytest.mark.parametrize("fps", [25, 30, 24000 / 1001])
def test_frames_come_back_in_order_at_their_rate(folder: Path, fps: float) -> None:
    frames = gradient_frames(61, 32, 48)
    with VideoWriter(folder / "a.mp4", width=48, height=32, fps=fps) as writer:
        for first, last in ((0, 20), (20, 21), (21, 61)):  # chunks, one of them a single frame
            writer.write(frames[first:last])
            writer.flush()
    info = probe_video(folder / "a.mp4")
    assert (info.width, info.height, info.frames, info.has_audio) == (48, 32, 61, False)
    assert info.fps == pytest.approx(fps, abs=0.01)
    assert info.duration == pytest.approx(61 / fps, abs=0.011)
    np.testing.assert_allclose(read_video(folder / "a.mp4").mean((1, 2, 3)), frames.mean((1, 2, 3)), atol=2)
    steps = np.diff(presentation_times(folder / "a.mp4"))
    assert steps == pytest.approx(1 / fps, abs=1e-4)


def presentation_times(path: Path) -> np.ndarray:
    """Seconds at which the pictures of a file are shown, in order."""
    listed = ffmpeg.run(["-i", ffmpeg.url(path), "-map", "0:v", "-c", "copy", "-f", "framecrc", "-"]).decode()
    base = re.search(r"#tb 0: (\d+)/(\d+)", listed)
    assert base is not None
    stamps = sorted(int(line.split(",")[2]) for line in listed.splitlines() if line[:1].isdigit())
    return np.array(stamps) * int(base[1]) / int(base[2])


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 150, 120), (0, 0, 0), (255, 255, 255)])
def test_colours_survive(folder: Path, colour: tuple[int, int, int]) -> None:
    with VideoWriter(folder / "a.mp4", width=32, height=32, fps=FPS) as writer:
        writer.write(np.full((2, 32, 32, 3), colour, dtype=np.uint8))
    assert "bt709" in ffmpeg.describe(writer.path, "video")
    np.testing.assert_allclose(read_video(writer.path)[0, 16, 16], colour, atol=3)


@pytest.mark.parametrize("size", [(33, 47), (33, 48), (32, 47), (1, 1)])
def test_odd_sizes_repeat_the_edge(folder: Path, size: tuple[int, int]) -> None:
    path = write_clip(folder / "odd.mp4", 3, size=size)
    frames = read_video(path)
    assert frames.shape == (3, size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    np.testing.assert_allclose(frames[2, -1, -1], 230, atol=3)


@pytest.mark.parametrize("crf", [0, 18, 51])
def test_every_quality_has_a_profile_that_players_take(folder: Path, crf: int) -> None:
    path = write_clip(folder / "a.mp4", crf=crf)
    assert "h264 (High) (avc1" in ffmpeg.describe(path, "video")
    assert "yuv420p" in ffmpeg.describe(path, "video")


def test_views_of_other_arrays_are_written_as_they_look(folder: Path) -> None:
    turned = gradient_frames(4, 48, 32).transpose(0, 2, 1, 3)[:, :, ::-1]
    turned.flags.writeable = False
    with VideoWriter(folder / "a.mp4", **SIZE) as writer:
        writer.write(turned)
    np.testing.assert_allclose(read_video(writer.path).mean((1, 2, 3)), turned.mean((1, 2, 3)), atol=2)


def test_writing_in_pieces_counts_frames_and_seconds(folder: Path) -> None:
    with VideoWriter(folder / "a.mp4", **SIZE) as writer:
        for piece in np.split(gradient_frames(10, 32, 48), 5):
            writer.write(piece)
            writer.write(piece[:0])
        assert (writer.frames_written, writer.duration) == (10, 0.4)
        assert not (folder / "a.mp4").exists()  # nothing to see before it is whole
    assert probe_video(folder / "a.mp4").frames == 10
    assert writer.close() == writer.path  # again: nothing happens
    assert writer.keep() == ""
    writer.abort()
    assert writer.path.exists()
    with pytest.raises(ValueError, match="is closed"):
        writer.write(gradient_frames(1, 32, 48))


@pytest.mark.parametrize("shape", [(1, 32, 47, 3), (32, 48, 3), (1, 32, 48, 4)])
def test_frames_of_another_shape_are_our_mistake(folder: Path, shape: tuple[int, ...]) -> None:
    with VideoWriter(folder / "a.mp4", **SIZE) as writer:
        with pytest.raises(ValueError, match=r"\(t, 32, 48, 3\) uint8"):
            writer.write(np.zeros(shape, dtype=np.uint8))
        writer.write(np.zeros((1, 32, 48, 3), dtype=np.uint8))


def test_a_size_that_h264_cannot_hold_is_found_before_any_work(folder: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*a\.mp4") as caught:
        VideoWriter(folder / "a.mp4", width=20000, height=2, fps=FPS)
    single_line(caught.value)
    assert os.listdir(folder) == []


# The thread


def test_write_waits_only_when_the_queue_is_full(folder: Path) -> None:
    group = noise(8, 128, 128)
    with VideoWriter(folder / "a.mp4", width=128, height=128, fps=FPS) as writer:
        writer.write(group)
        writer.flush()  # from here on the thread is idle, and begins with the next group
        writer.write(group)
        wait_for(lambda: writer._encoder._chunk is not None)
        chunk = writer._encoder._chunk
        assert chunk is not None
        os.kill(chunk._process.pid, signal.SIGSTOP)
        before = writer.waited
        for _ in range(4):
            writer.write(group)
        assert writer.waited == before
        full = threading.Thread(target=writer.write, args=(group,))
        full.start()
        full.join(0.2)
        blocked = full.is_alive()
        os.kill(chunk._process.pid, signal.SIGCONT)
        full.join()
        assert blocked
        assert writer.waited - before > 0.1
    assert probe_video(folder / "a.mp4").frames == 7 * 8


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_frames_are_not_copied_on_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []
    frames = gradient_frames(3, 32, 48)
    with VideoWriter(folder / "a.mp4", **SIZE) as writer:
        handle = writer._encoder._handle

        def note(item: object) -> None:
            taken.append(item)
            handle(item)

        monkeypatch.setattr(writer._encoder, "_handle", note)
        writer.write(frames)
    assert taken[0] is frames


def test_an_encoder_that_dies_is_reported_and_what_it_had_finished_is_kept(folder: Path) -> None:
    writer = VideoWriter(folder / "a.mp4", **SIZE)
    writer.write(gradient_frames(20, 32, 48))
    writer.flush()
    writer.write(gradient_frames(5, 32, 48))
    wait_for(lambda: writer._encoder._chunk is not None)
    assert writer._encoder._chunk is not None
    os.kill(writer._encoder._chunk._process.pid, signal.SIGKILL)
    message = write_until_it_fails(writer, gradient_frames(5, 32, 48))
    assert message == f"cannot write '{folder}/a.mp4': ffmpeg was ended by SIGKILL"
    assert writer.keep() == f"the 20 finished frames are in {folder}/a.partial.mp4"
    assert plays(folder / "a.partial.mp4") == 20


def write_until_it_fails(writer: VideoWriter, frames: np.ndarray, *, flush: bool = False) -> str:
    """What the OutputError says."""
    with pytest.raises(OutputError) as caught:  # noqa: PT012 - one of many writes fails
        for _ in range(1000):
            writer.write(frames)
            if flush:
                writer.flush()
    return single_line(caught.value)


def test_an_ffmpeg_that_cannot_encode_is_found_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = folder / "ffmpeg"
    fake.write_text("#!/bin/sh\necho '[out#0/mp4 @ 0x1] Error writing trailer: No space left on device' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(fake))
    with pytest.raises(OutputError, match=r"a\.mp4': Error writing trailer: No space left on device"):
        VideoWriter(folder / "a.mp4", width=480, height=320, fps=FPS)
    assert os.listdir(folder) == ["ffmpeg"]


# What is kept


def test_an_exception_keeps_what_is_there_and_says_so(folder: Path) -> None:
    sound = write_wav(folder / "tone.wav", tone(5.0, 16000), 16000)

    def interrupted() -> None:
        with VideoWriter(folder / "a.mp4", **SIZE, soundtrack=Soundtrack(sound, DELAY), duration=4.0) as writer:
            writer.write(gradient_frames(20, 32, 48))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    assert caught.value.__notes__ == [f"the 20 finished frames are in {folder}/a.partial.mp4"]
    info = probe_video(folder / "a.partial.mp4")
    assert (info.frames, info.duration, info.has_audio) == (20, 0.8, True)
    assert sorted(os.listdir(folder)) == ["a.partial.mp4", "tone.wav"]


def test_an_exception_before_the_first_frame_leaves_nothing(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, VideoWriter(folder / "a.mp4", **SIZE, preview=True):
        raise KeyboardInterrupt
    assert not hasattr(caught.value, "__notes__")
    assert os.listdir(folder) == []


def test_abort_leaves_nothing_and_an_old_file_alone(folder: Path) -> None:
    path = folder / "a.mp4"
    path.write_bytes(b"old")
    writer = VideoWriter(path, **SIZE, preview=True)
    writer.write(gradient_frames(5, 32, 48))
    writer.abort()
    assert path.read_bytes() == b"old"
    assert os.listdir(folder) == ["a.mp4"]
    write_clip(path, 5)
    assert probe_video(path).frames == 5


def test_nothing_is_overwritten_by_a_partial_file(folder: Path) -> None:
    for number in (1, 2, 3):
        writer = VideoWriter(folder / "a.mp4", **SIZE)
        writer.write(gradient_frames(number, 32, 48))
        writer.keep()
    assert [plays(folder / f"a.partial{suffix}.mp4") for suffix in ("", "-2", "-3")] == [1, 2, 3]


def test_a_sound_that_cannot_be_put_in_leaves_the_pictures(folder: Path) -> None:
    sound = write_wav(folder / "tone.wav", tone(1.0, 16000), 16000)
    writer = VideoWriter(folder / "a.mp4", **SIZE, soundtrack=Soundtrack(sound), duration=1.0)
    writer.write(gradient_frames(25, 32, 48))
    hidden(folder)[-1].with_name("sound.m4a").unlink()
    with pytest.raises(OutputError) as caught:
        writer.close()
    message = single_line(caught.value)
    assert message.startswith(f"cannot write '{folder}/a.mp4': ")
    assert message.endswith(f"; the 25 finished frames are in {folder}/a.partial.mp4, without sound")
    assert plays(folder / "a.partial.mp4") == 25
    assert writer.keep() == ""  # all is said


def test_a_target_that_became_a_folder_costs_no_sound(folder: Path) -> None:
    sound = write_wav(folder / "tone.wav", tone(1.0, 16000), 16000)
    writer = VideoWriter(folder / "a.mp4", **SIZE, soundtrack=Soundtrack(sound), duration=1.0)
    writer.write(gradient_frames(25, 32, 48))
    (folder / "a.mp4").mkdir()
    with pytest.raises(OutputError, match=r"Is a directory; the 25 finished frames are in .*/a\.partial\.mp4$"):
        writer.close()
    assert probe_video(folder / "a.partial.mp4").has_audio


def test_a_file_that_appears_meanwhile_is_not_overwritten_unless_allowed(folder: Path) -> None:
    writer = VideoWriter(folder / "a.mp4", **SIZE, overwrite=False)
    writer.write(gradient_frames(2, 32, 48))
    (folder / "a.mp4").write_bytes(b"theirs")
    with pytest.raises(OutputError, match=r"File exists; the 2 finished frames are in .*/a\.partial\.mp4$"):
        writer.close()
    assert (folder / "a.mp4").read_bytes() == b"theirs"


@pytest.mark.parametrize("name", ["x" * 251 + ".mp4", "ж" * 125 + ".mp4"])
def test_the_longest_name_has_a_partial_file_too(folder: Path, name: str) -> None:
    writer = VideoWriter(folder / name, **SIZE, preview=True)
    writer.write(gradient_frames(5, 32, 48))
    line = writer.keep()
    (kept,) = folder.iterdir()
    assert line == f"the 5 finished frames are in {kept}"
    assert kept.name.endswith(".partial.mp4")
    assert plays(kept) == 5


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds folders again through /proc")
@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_that_is_renamed_takes_its_video_along(tmp_path: Path, whole: bool) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    sound = write_wav(tmp_path / "tone.wav", tone(1.0, 16000), 16000)
    writer = VideoWriter(before / "a.mp4", **SIZE, soundtrack=Soundtrack(sound), duration=1.0, preview=True)
    writer.write(gradient_frames(25, 32, 48))
    before.rename(after)
    before.mkdir()
    if whole:
        assert writer.close() == after / "a.mp4"
    else:
        assert writer.keep() == f"the 25 finished frames are in {after}/a.partial.mp4"
    (video,) = after.iterdir()
    assert probe_video(video).has_audio
    assert list(before.iterdir()) == []


def test_a_folder_that_may_no_longer_be_written_keeps_the_frames_hidden(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "tone.wav", tone(1.0, 16000), 16000)
    output = tmp_path / "out"
    writer = VideoWriter(output / "a.mp4", **SIZE, soundtrack=Soundtrack(sound), duration=1.0)
    writer.write(gradient_frames(25, 32, 48))
    with unwritable(output):
        line = writer.keep()
        (kept,) = hidden(output)
        assert line.startswith(f"the 25 finished frames are in {kept} (cannot write to the folder above it: ")
        assert kept.name == "a.partial.mp4"
        assert probe_video(kept).has_audio
        writer.abort()  # does not take them away
        assert probe_video(kept).frames == 25


def run_quietly(*command: Any) -> int:
    """Run a program and return its exit status."""
    return subprocess.run(command, check=False, capture_output=True).returncode


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """A folder in which nothing can be made, renamed or removed, not even by root if the file system can do that."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
    elif shutil.which("chattr") and run_quietly("chattr", "+i", folder) == 0:
        yield
        subprocess.run(["chattr", "-i", folder], check=True)
    else:
        pytest.skip("root may write everywhere here")


def test_a_video_without_frames_is_not_written(folder: Path) -> None:
    with pytest.raises(OutputError, match="no frames were given"), VideoWriter(folder / "a.mp4", **SIZE):
        pass
    assert os.listdir(folder) == []


# Disks that are full

FULL = """
import resource, sys
import numpy as np
from omniavatar.errors import OutputError
from omniavatar.media.writer import VideoWriter
writer = VideoWriter(sys.argv[1], width=96, height=96, fps=25, preview=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
frames = np.random.default_rng(0).integers(0, 256, (10, 96, 96, 3), dtype=np.uint8)
try:
    for _ in range(100):
        writer.write(frames)
        writer.flush()
except OutputError as error:
    print(error)
print(writer.keep())
"""


def test_a_file_that_may_not_grow_keeps_what_fits(folder: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", FULL, folder / "a.mp4"], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[0] == f"cannot write '{folder}/a.mp4': File too large"
    found = re.fullmatch(rf"the (\d+) finished frames are in {folder}/a\.partial\.mp4", ran.stdout.splitlines()[1])
    assert found is not None
    assert plays(folder / "a.partial.mp4") == int(found[1]) >= 10
    assert os.listdir(folder) == ["a.partial.mp4"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk]
    if os.geteuid() != 0 or run_quietly(*mounted) != 0:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_keeps_the_chunks_that_fit(small_disk: Path, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "tone.wav", tone(4.0, 16000), 16000)
    writer = VideoWriter(small_disk / "a.mp4", width=96, height=96, fps=FPS, soundtrack=Soundtrack(sound), duration=4.0)
    message = write_until_it_fails(writer, noise(10, 96, 96), flush=True)
    assert message == f"cannot write '{small_disk}/a.mp4': No space left on device"
    line = writer.keep()
    kept = small_disk / "a.partial.mp4"
    assert re.fullmatch(rf"the \d+ finished frames are in {kept}, without sound: .*No space left on device", line)
    assert f"the {plays(kept)} finished" in line
    assert os.listdir(small_disk) == ["a.partial.mp4"]


def test_a_disk_that_is_full_at_the_end_keeps_the_silent_video(small_disk: Path, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "tone.wav", tone(4.0, 16000), 16000)
    writer = VideoWriter(small_disk / "a.mp4", width=96, height=96, fps=FPS, soundtrack=Soundtrack(sound), duration=0.4)
    writer.write(noise(10, 96, 96))
    writer.flush()
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - 8192))
    with pytest.raises(OutputError, match=r"No space left on device; the 10 finished frames .*, without sound$"):
        writer.close()
    assert plays(small_disk / "a.partial.mp4") == 10


def test_a_disk_without_room_for_the_sound_is_the_outputs_fault(small_disk: Path, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "noise.wav", np.random.default_rng(0).uniform(-1, 1, (960_000, 2)), 48000)
    with pytest.raises(OutputError, match="No space left on device"):
        VideoWriter(small_disk / "a.mp4", **SIZE, soundtrack=Soundtrack(sound), duration=60.0)
    assert os.listdir(small_disk) == []


# Signals and sudden ends


@pytest.mark.usefixtures("interruptible")
def test_a_signal_in_a_deferred_block_takes_effect_behind_it() -> None:
    reached = []

    def work() -> None:
        with signals_deferred():
            signal.raise_signal(signal.SIGINT)
            reached.append("end")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_says_nothing_new() -> None:
    def stop() -> None:
        try:
            raise KeyboardInterrupt("first")
        except KeyboardInterrupt:
            with signals_deferred():
                signal.raise_signal(signal.SIGINT)
            raise

    with pytest.raises(KeyboardInterrupt, match="first"):
        stop()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("fails", [False, True])
def test_ctrl_c_while_a_file_is_saved_carries_the_line_that_says_where(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    writer = VideoWriter(folder / "a.mp4", **SIZE)
    writer.write(gradient_frames(3, 32, 48))
    count = writer._count

    def interrupted() -> int | None:
        signal.raise_signal(signal.SIGINT)
        return count()

    monkeypatch.setattr(writer, "_count", interrupted)
    if fails:
        (folder / "a.mp4").mkdir()
    with pytest.raises(KeyboardInterrupt) as caught:
        writer.close() if fails else writer.keep()
    assert caught.value.__notes__ == [f"the 3 finished frames are in {folder}/a.partial.mp4"]
    assert plays(folder / "a.partial.mp4") == 3


def test_signals_that_were_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_deferred():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        other = threading.Thread(target=signals_deferred().__enter__)
        other.start()
        other.join()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


INTERRUPTED = """
import signal, sys
import numpy as np
from omniavatar.media.writer import VideoWriter
signal.signal(signal.SIGINT, signal.default_int_handler)
with VideoWriter(sys.argv[1], width=48, height=32, fps=25) as writer:
    writer.write(np.zeros((20, 32, 48, 3), dtype=np.uint8))
    mux = writer._mux
    def slow(frames):
        print("saving", flush=True)
        sys.stdin.readline()
        return mux(frames)
    writer._mux = slow
    print("ready", flush=True)
    while True:
        signal.pause()
"""


def test_ctrl_c_twice_in_a_terminal_keeps_what_is_there(folder: Path) -> None:
    """The terminal signals the whole process group, which ffmpeg survives; the second one waits for the file."""
    command = [sys.executable, "-c", INTERRUPTED, str(folder / "a.mp4")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, start_new_session=True, **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == b"ready\n"
        os.killpg(child.pid, signal.SIGINT)
        assert child.stdout.readline() == b"saving\n"
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate(b"\n", timeout=30)
        assert child.returncode != 0
    assert f"the 20 finished frames are in {folder}/a.partial.mp4" in errors.decode()
    assert plays(folder / "a.partial.mp4") == 20
    assert os.listdir(folder) == ["a.partial.mp4"]


KILLED = """
import os, signal, subprocess, sys
import numpy as np
from omniavatar.media.writer import VideoWriter
writer = VideoWriter(sys.argv[1], width=48, height=32, fps=25)
for _ in range(3):
    writer.write(np.zeros((7, 32, 48, 3), dtype=np.uint8))
    writer.flush()
writer.write(np.zeros((7, 32, 48, 3), dtype=np.uint8))
while writer._encoder._chunk is None:
    pass
os.kill(writer._encoder._chunk._process.pid, signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_flushed_chunks_play_after_python_and_ffmpeg_are_killed(tmp_path: Path) -> None:
    assert run_quietly(sys.executable, "-c", KILLED, tmp_path / "a.mp4") == -signal.SIGKILL
    (left,) = hidden(tmp_path)
    assert left.name == "a.partial.mp4"
    assert plays(left) == 21


# Preview


def test_the_preview_grows_with_its_sound_and_goes_as_the_video_comes(folder: Path) -> None:
    sound = write_wav(folder / "burst.wav", noise_burst(6.0, RATE, start=1.0), RATE)
    track = Soundtrack(sound, DELAY)
    with VideoWriter(folder / "a.mp4", **SIZE, soundtrack=track, duration=6.0, preview=True) as writer:
        preview = writer.preview
        assert preview == folder / "a.preview.mp4"
        for chunk in range(3):
            writer.write(gradient_frames(50, 32, 48))
            writer.flush()
            shown = 50 * (chunk + 1) - 10
            wait_for(partial(_has_frames, preview, shown))
        heard = burst_starts_at(sound_as_played(preview), noise_burst(0.1, RATE, start=0.0))
        assert heard == pytest.approx(1.0 + DELAY, abs=0.001)
        assert presentation_times(preview)[:2] == pytest.approx([0.0, 1 / FPS], abs=0.001)
    assert sorted(os.listdir(folder)) == ["a.mp4", "burst.wav"]


def _has_frames(path: Path, least: int) -> bool:
    with contextlib.suppress(ffmpeg.FfmpegError):
        return ffmpeg.count_packets(path) >= least
    return False


def test_a_preview_takes_no_name_that_is_in_use_and_its_end_stops_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "a.preview.mp4").write_bytes(b"theirs")
    with VideoWriter(folder / "a.mp4", **SIZE, preview=True) as writer:
        assert writer.preview == folder / "a.preview-2.mp4"
        assert writer._preview is not None
        os.kill(writer._preview._process.pid, signal.SIGKILL)
        for _ in range(2):
            writer.write(gradient_frames(10, 32, 48))
            writer.flush()
    assert probe_video(writer.path).frames == 20
    assert sorted(os.listdir(folder)) == ["a.mp4", "a.preview.mp4"]
    assert (folder / "a.preview.mp4").read_bytes() == b"theirs"
    assert next(record.getMessage() for record in caplog.records).startswith("the preview ")


# Metadata

DIFFICULT = '{"prompt": "a=b; c#d \\\\ \\"é 日本 😀\\"",\n "long": "' + "x" * 5000 + '"}\n[STREAM]\ny=1\n;z\r\n\\\n'


def test_metadata_comes_back_from_whole_and_partial_files(folder: Path) -> None:
    metadata = {key: f"{key} of it" for key in METADATA_KEYS} | {"comment": DIFFICULT, "title": " = "}
    whole = write_clip(folder / "a.mp4", metadata=metadata)
    assert read_metadata(whole) == metadata
    writer = VideoWriter(whole, **SIZE, metadata=metadata)
    writer.write(gradient_frames(2, 32, 48))
    writer.keep()
    assert read_metadata(folder / "a.partial.mp4") == metadata
    assert read_metadata(write_clip(folder / "plain.mp4")) == {}


def test_titles_of_chapters_are_not_those_of_the_file(folder: Path) -> None:
    listed = folder / "listed.txt"
    listed.write_text(";FFMETADATA1\ntitle=whole\n[CHAPTER]\nTIMEBASE=1/1\nSTART=0\nEND=1\ntitle=first\n")
    plain, chaptered = write_clip(folder / "plain.mp4"), folder / "chaptered.mp4"
    texts = ["-f", "ffmetadata", "-i", ffmpeg.url(listed), "-map_metadata", "1", "-map_chapters", "1", "-map", "0"]
    ffmpeg.run(["-i", ffmpeg.url(plain), *texts, "-c", "copy", ffmpeg.url(chaptered)])
    assert read_metadata(chaptered) == {"title": "whole"}


def test_metadata_that_an_mp4_does_not_hold(folder: Path) -> None:
    for metadata, reason in (
        ({"prompt": "x"}, "no metadata 'prompt'; choices: title, artist"),
        ({"comment": "x" * 200_000}, "shorter than 100000 bytes"),
        ({"comment": "a\0b"}, "without zero bytes"),
    ):
        with pytest.raises(ValueError, match=reason):
            VideoWriter(folder / "a.mp4", **SIZE, metadata=metadata)
    (folder / "text.mp4").write_text("hello")
    with pytest.raises(InputError, match="not a media file"):
        read_metadata(folder / "text.mp4")
    assert os.listdir(folder) == ["text.mp4"]


# The place


def test_awkward_names_and_missing_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    sound = write_wav(folder / "plain.wav", tone(0.4, 16000), 16000).rename(folder / "-y 'x' $(id).wav")
    path = Path("-new folder", 'concat:a|b "c" %d.mp4')
    write_clip(path, 3, sound=Soundtrack(Path(sound.name)), preview=True)
    assert probe_video(path).has_audio


def test_the_file_has_ordinary_permissions(folder: Path) -> None:
    umask = os.umask(0o022)
    try:
        path = write_clip(folder / "a.mp4", 2)
        writer = VideoWriter(path, **SIZE)
        writer.write(gradient_frames(1, 32, 48))
        writer.keep()
    finally:
        os.umask(umask)
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_check_output_names_what_is_wrong(folder: Path) -> None:
    (folder / "dir.mp4").mkdir()
    (folder / "file.txt").write_text("")
    (folder / "old.mp4").write_text("")
    for path, reason in {
        folder / "dir.mp4": "exists and is not a file",
        folder / "file.txt" / "a.mp4": "Not a directory",
        folder / "a.webm": "ends in .mp4",
        folder / ("x" * 300 + ".mp4"): "File name too long",
        Path("/proc/nowhere/a.mp4"): "cannot write",
        Path("/dev/null"): "ends in .mp4",
        Path("a\0b.mp4"): "null",
    }.items():
        with pytest.raises(OutputError, match=reason) as caught:
            check_output(path)
        single_line(caught.value)
    with pytest.raises(OutputError, match="it exists"):
        check_output(folder / "old.mp4", overwrite=False)
    assert check_output(folder / "new" / "deep" / "a.mp4").name == "a.mp4"
    assert sorted(os.listdir(folder)) == ["dir.mp4", "file.txt", "old.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(folder: Path) -> None:
    folder.chmod(0o555)
    with pytest.raises(OutputError, match="Permission denied"):
        check_output(folder / "a.mp4")
    folder.chmod(0o755)
