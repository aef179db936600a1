"""Video out: exact frame counts, sound in sync, whole files or none. Video in: frames, rates, sizes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from omniavatar.errors import InputError, OutputError
from omniavatar.media import ffmpeg
from omniavatar.media.audio import load_waveform, probe_audio
from omniavatar.media.video import Soundtrack, VideoWriter, check_output, probe_video, read_video
from tests.media.samples import convert, gradient_frames, noise_burst, single_line, tone, write_wav

FPS = 25
DELAY = 1 / FPS + 0.3
RATE = 48000


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An output folder in which a test may leave visible files only."""
    yield tmp_path
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def write_clip(
    path: Path, count: int = 10, *, size: tuple[int, int] = (32, 48), fps: float = FPS, sound: Soundtrack | None = None
) -> Path:
    with VideoWriter(path, width=size[1], height=size[0], fps=fps, soundtrack=sound) as writer:
        writer.write(gradient_frames(count, *size))
    return path


def sound_as_played(path: Path) -> np.ndarray:
    """The sound at its time stamps, as a player places it against the pictures: (samples,) at `RATE`."""
    placed = ["-map", "0:a:0", "-af", "aresample=async=1:first_pts=0", "-ar", str(RATE), "-ac", "1", "-f", "f32le", "-"]
    return np.frombuffer(ffmpeg.run(["-i", ffmpeg.url(path), *placed]), dtype="<f4")


def burst_starts_at(sound: np.ndarray, burst: np.ndarray) -> float:
    """Seconds at which `burst` begins in `sound`, by the peak of the cross-correlation."""
    length = sound.size + burst.size
    correlation = np.fft.irfft(np.fft.rfft(sound, length) * np.fft.rfft(burst, length).conj(), length)
    return int(np.abs(correlation[: sound.size]).argmax()) / RATE


@pytest.mark.parametrize(
    ("suffix", "sample_rate", "channels"), [("wav", 16000, 1), ("mp3", 44100, 2), ("flac", 48000, 1), ("mp4", 48000, 2)]
)
def test_sound_is_in_sync(folder: Path, suffix: str, sample_rate: int, channels: int) -> None:
    burst_file = write_wav(folder / "burst.wav", noise_burst(0.1, sample_rate, start=0.0), sample_rate)
    sound = np.stack([noise_burst(3.0, sample_rate, start=1.0)] * channels, axis=1)
    original = write_wav(folder / "original.wav", sound, sample_rate)
    given = original if suffix == "wav" else convert(original, folder / f"given.{suffix}")

    talk = write_clip(folder / "talk.mp4", 75, sound=Soundtrack(given, DELAY))

    offset = burst_starts_at(sound_as_played(talk), load_waveform(burst_file, RATE)) - (1.0 + DELAY)
    assert abs(offset) < 0.005
    info, heard = probe_video(talk), probe_audio(talk)
    assert (info.frames, info.duration, info.has_audio) == (75, 3.0, True)
    assert (heard.sample_rate, heard.channels, heard.codec) == (sample_rate, channels, "aac")
    assert ", start: 0.000000" in ffmpeg.describe(talk, "video")


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


@pytest.mark.parametrize("seconds", [0.2, 5.0])
def test_the_video_decides_the_length(folder: Path, seconds: float) -> None:
    sound = write_wav(folder / "tone.wav", tone(seconds, 16000), 16000)
    talk = write_clip(folder / "talk.mp4", 30, sound=Soundtrack(sound, DELAY))
    info = probe_video(talk)
    assert (info.frames, info.duration) == (30, 1.2)
    assert sound_as_played(talk).size == pytest.approx(1.2 * RATE, abs=2)


@pytest.mark.parametrize(("sample_rate", "channels", "expected"), [(192000, 2, (48000, 2)), (8000, 9, (8000, 1))])
def test_sound_that_aac_cannot_hold_is_converted(
    folder: Path, sample_rate: int, channels: int, expected: tuple[int, int]
) -> None:
    sound = np.stack([tone(0.4, sample_rate)] * channels, axis=1)
    given = write_wav(folder / "given.wav", sound, sample_rate)
    info = probe_audio(write_clip(folder / "talk.mp4", sound=Soundtrack(given)))
    assert (info.sample_rate, info.channels) == expected


@pytest.mark.parametrize("fps", [25, 30, 24000 / 1001])
def test_frames_come_back_in_order_at_their_rate(folder: Path, fps: float) -> None:
    path = write_clip(folder / "a.mp4", 12, fps=fps)
    info = probe_video(path)
    assert (info.width, info.height, info.frames, info.has_audio) == (48, 32, 12, False)
    assert info.fps == pytest.approx(fps, abs=0.01)
    frames = read_video(path)
    assert frames.shape == (12, 32, 48, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), gradient_frames(12, 1, 1).mean((1, 2, 3)), atol=2)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 150, 120), (0, 0, 0), (255, 255, 255)])
def test_colours_survive(folder: Path, colour: tuple[int, int, int]) -> None:
    with VideoWriter(folder / "a.mp4", width=32, height=32, fps=FPS) as writer:
        writer.write(np.full((2, 32, 32, 3), colour, dtype=np.uint8))
    assert "bt709" in ffmpeg.describe(writer.path, "video")
    np.testing.assert_allclose(read_video(writer.path)[0, 16, 16], colour, atol=3)


def test_odd_sizes_repeat_the_edge(folder: Path) -> None:
    path = write_clip(folder / "odd.mp4", 3, size=(33, 47))
    frames = read_video(path)
    assert frames.shape == (3, 34, 48, 3)
    np.testing.assert_allclose(frames[2, 33, 47], 230, atol=3)


def test_writing_in_pieces_counts_frames_and_seconds(folder: Path) -> None:
    with VideoWriter(folder / "a.mp4", width=48, height=32, fps=FPS) as writer:
        for piece in np.split(gradient_frames(10, 32, 48), 5):
            writer.write(piece)
        assert (writer.frames_written, writer.duration) == (10, 0.4)
        assert not (folder / "a.mp4").exists()  # nothing to see before it is whole
    assert probe_video(folder / "a.mp4").frames == 10
    assert writer.close() == writer.path  # again: nothing happens


@pytest.mark.parametrize("shape", [(1, 32, 47, 3), (32, 48, 3), (1, 32, 48, 4)])
def test_frames_of_another_shape_are_our_mistake(folder: Path, shape: tuple[int, ...]) -> None:
    with VideoWriter(folder / "a.mp4", width=48, height=32, fps=FPS) as writer:
        with pytest.raises(ValueError, match=r"\(t, 32, 48, 3\) uint8"):
            writer.write(np.zeros(shape, dtype=np.uint8))
        writer.write(np.zeros((1, 32, 48, 3), dtype=np.uint8))


def test_an_exception_leaves_nothing(folder: Path) -> None:
    def interrupted() -> None:
        with VideoWriter(folder / "a.mp4", width=48, height=32, fps=FPS) as writer:
            writer.write(gradient_frames(5, 32, 48))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(folder) == []


def test_an_old_file_survives_a_failure(folder: Path) -> None:
    path = folder / "a.mp4"
    path.write_bytes(b"old")
    writer = VideoWriter(path, width=48, height=32, fps=FPS)
    writer.write(gradient_frames(5, 32, 48))
    writer.abort()
    assert path.read_bytes() == b"old"
    write_clip(path, 5)
    assert probe_video(path).frames == 5


def test_what_is_there_can_be_published_under_another_name(folder: Path) -> None:
    sound = write_wav(folder / "tone.wav", tone(5.0, 16000), 16000)
    partial = folder / "elsewhere" / "a.partial.mp4"

    def interrupted() -> None:
        soundtrack = Soundtrack(sound, DELAY)
        with VideoWriter(folder / "a.mp4", width=48, height=32, fps=FPS, soundtrack=soundtrack) as writer:
            try:
                writer.write(gradient_frames(20, 32, 48))
                writer._encoder.stdin.write(bytes(1000))  # the interrupt fell into the middle of a frame
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                assert writer.close(path=partial) == partial
                raise

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    info = probe_video(partial)
    assert (info.frames, info.duration, info.has_audio) == (20, 0.8, True)
    assert sorted(os.listdir(folder)) == ["elsewhere", "tone.wav"]
    assert os.listdir(partial.parent) == [partial.name]


INTERRUPTED = """
import sys
import numpy as np
from omniavatar.media.video import VideoWriter
with VideoWriter(sys.argv[1], width=48, height=32, fps=25) as writer:
    try:
        writer.write(np.zeros((20, 32, 48, 3), dtype=np.uint8))
        print("ready", flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        writer.close(path=sys.argv[2])
        raise
"""


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_a_terminal_keeps_what_is_there(folder: Path) -> None:
    """The terminal signals the whole process group; ffmpeg must live on to finish the file."""
    partial = folder / "partial.mp4"
    command = [sys.executable, "-c", INTERRUPTED, str(folder / "a.mp4"), str(partial)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, start_new_session=True, **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == b"ready\n"
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(timeout=30) != 0
    assert probe_video(partial).frames == 20
    assert os.listdir(folder) == ["partial.mp4"]


def test_a_failed_close_can_be_repeated_elsewhere(folder: Path) -> None:
    sound = write_wav(folder / "tone.wav", tone(1.0, 16000), 16000)
    with VideoWriter(folder / "a.mp4", width=48, height=32, fps=FPS, soundtrack=Soundtrack(sound)) as writer:
        writer.write(gradient_frames(5, 32, 48))
        moved = sound.rename(folder / "moved.wav")
        with pytest.raises(OutputError, match="No such file") as caught:
            writer.close()
        single_line(caught.value)
        moved.rename(sound)
        writer.close(path=folder / "b.mp4")
    assert probe_video(folder / "b.mp4").frames == 5
    assert not (folder / "a.mp4").exists()


def test_a_video_without_frames_is_not_written(folder: Path) -> None:
    with (
        pytest.raises(OutputError, match="no frames were given"),
        VideoWriter(folder / "a.mp4", width=48, height=32, fps=FPS),
    ):
        pass
    assert os.listdir(folder) == []


def test_an_encoder_that_dies_is_reported_in_its_own_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = folder / "ffmpeg"
    fake.write_text("#!/bin/sh\necho '[out#0/mp4 @ 0x1] Error writing trailer: No space left on device' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(fake))

    def write_until_it_fails() -> None:
        with VideoWriter(folder / "a.mp4", width=480, height=320, fps=FPS) as writer:
            for _ in range(100):
                writer.write(gradient_frames(1, 320, 480))

    with pytest.raises(OutputError, match=r"a\.mp4': Error writing trailer: No space left on device"):
        write_until_it_fails()
    assert os.listdir(folder) == ["ffmpeg"]


def test_a_bad_soundtrack_is_found_before_any_work(folder: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        VideoWriter(folder / "a.mp4", width=48, height=32, fps=FPS, soundtrack=Soundtrack(folder / "none.wav"))
    assert os.listdir(folder) == []


def test_awkward_names_and_missing_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    sound = write_wav(folder / "plain.wav", tone(0.4, 16000), 16000).rename(folder / "-y 'x' $(id).wav")
    path = Path("-new folder", 'concat:a|b "c" %d.mp4')
    write_clip(path, 3, sound=Soundtrack(sound.name))
    assert probe_video(path).has_audio


def test_the_file_has_ordinary_permissions(folder: Path) -> None:
    umask = os.umask(0o022)
    try:
        path = write_clip(folder / "a.mp4", 2)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


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


def test_reading_at_another_rate_and_size(folder: Path) -> None:
    path = write_clip(folder / "a.mp4", 30, size=(32, 64), fps=30)
    frames = read_video(path, fps=15, size=(16, 16))
    assert frames.shape == (15, 16, 16, 3)
    assert read_video(path, max_frames=4).shape == (4, 32, 64, 3)


def test_reading_from_the_middle(folder: Path) -> None:
    path = write_clip(folder / "clip.mp4", 10)
    whole = read_video(path, fps=FPS / 2)
    assert np.array_equal(read_video(path, fps=FPS / 2, start=3), whole[3:])
    assert np.array_equal(read_video(path, start=4, max_frames=2), read_video(path)[4:6])
    assert read_video(path, start=10).shape == (0, 32, 48, 3)


def test_the_centre_is_read_when_the_shape_differs(folder: Path) -> None:
    with VideoWriter(folder / "a.mp4", width=96, height=32, fps=FPS) as writer:
        frames = np.zeros((2, 32, 96, 3), dtype=np.uint8)
        frames[:, :, 32:64] = 255
        writer.write(frames)
    read = read_video(writer.path, size=(32, 32))
    assert read[:, 4:-4, 4:-4].min() > 240


def test_a_rotated_clip_is_upright(folder: Path) -> None:
    plain = write_clip(folder / "plain.mp4", 3, size=(32, 48))
    turned = folder / "turned.mp4"
    ffmpeg.run(["-display_rotation", "90", "-i", ffmpeg.url(plain), "-c", "copy", ffmpeg.url(turned)])
    info = probe_video(turned)
    assert (info.width, info.height) == (32, 48)
    assert read_video(turned).shape == (3, 48, 32, 3)


def test_what_is_not_a_video(folder: Path) -> None:
    sound = write_wav(folder / "tone.wav", tone(0.2, 16000), 16000)
    for read in (probe_video, read_video):
        with pytest.raises(InputError, match="no readable video track"):
            read(sound)
    with pytest.raises(InputError, match="cannot be decoded"):
        read_video(sound, size=(16, 16))
    with pytest.raises(InputError, match="does not exist"):
        read_video(folder / "none.mp4", size=(16, 16))
    (folder / "text.mp4").write_text("hello")
    with pytest.raises(InputError, match="not a media file"):
        probe_video(folder / "text.mp4")
