"""Video in: frames, rates, sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omniavatar.errors import InputError
from omniavatar.media import ffmpeg
from omniavatar.media.video import probe_video, read_video
from omniavatar.media.writer import VideoWriter
from tests.media.samples import gradient_frames, tone, write_wav

FPS = 25


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An output folder in which a test may leave visible files only."""
    yield tmp_path
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def write_clip(path: Path, count: int = 10, *, size: tuple[int, int] = (32, 48), fps: float = FPS) -> Path:
    with VideoWriter(path, width=size[1], height=size[0], fps=fps) as writer:
        writer.write(gradient_frames(count, *size))
    return path


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
    with pytest.raises(InputError, match="no readable video track"):
        read_video(sound, size=(16, 16))
    with pytest.raises(InputError, match="does not exist"):
        read_video(folder / "none.mp4", size=(16, 16))
    (folder / "text.mp4").write_text("hello")
    with pytest.raises(InputError, match="not a media file"):
        probe_video(folder / "text.mp4")
