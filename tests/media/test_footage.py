"""Videos that are read piece by piece."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from omniavatar.errors import InputError
from omniavatar.media.clip import Clip
from omniavatar.media.ffmpeg import Ffmpeg
from omniavatar.media.footage import Footage
from omniavatar.media.video import decoder, read_video
from tests.media.samples import single_line, write_lossless

SIZE = (20, 24)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 frames of noise, 25 a second."""
    pictures = np.random.default_rng(0).integers(0, 256, (90, 16, 24, 3), np.uint8)
    return write_lossless(tmp_path_factory.mktemp("footage") / "clip.mkv", pictures)


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[Ffmpeg]:
    """Every decoder that is started."""
    started: list[Ffmpeg] = []

    def noted(source: Path | Clip, arguments: list[str]) -> Ffmpeg:
        started.append(decoder(source, arguments))
        return started[-1]

    monkeypatch.setattr("omniavatar.media.footage.decoder", noted)
    return started


def as_bytes(pictures: Tensor) -> np.ndarray:
    """(1 3 n H W) in [0, 1] as `read_video` gives them."""
    frames: np.ndarray = (pictures[0] * 255).round().byte().permute(1, 2, 3, 0).numpy()
    return frames


@pytest.mark.parametrize("fps", [25, 10, 30])
def test_pieces_that_overlap_are_those_of_the_whole_decoded_once(clip: Path, decoders: list[Ffmpeg], fps: int) -> None:
    whole = read_video(clip, fps=fps, size=SIZE)
    with Footage(clip, fps=fps, size=SIZE) as footage:
        for start, stop in ((0, 9), (4, 13), (8, 60), (70, 71), (70, 200)):
            assert np.array_equal(as_bytes(footage.read(start, stop)), whole[start:stop])
    assert len(decoders) == 1
    assert footage.length == len(whole)


def test_going_back_starts_anew(clip: Path, decoders: list[Ffmpeg]) -> None:
    whole = read_video(clip, size=SIZE)
    with Footage(clip, fps=25, size=SIZE) as footage:
        for start in (50, 10):
            assert np.array_equal(as_bytes(footage.read(start, start + 5)), whole[start : start + 5])
    assert len(decoders) == 2


def test_behind_the_end_is_nothing_or_the_last_picture(clip: Path) -> None:
    last = read_video(clip, size=SIZE)[-1:]
    with Footage(clip, fps=25, size=SIZE) as footage:
        assert footage.read(88, 95).shape == (1, 3, 2, *SIZE)
        assert footage.read(95, 99).shape == (1, 3, 0, *SIZE)
        assert np.array_equal(as_bytes(footage.read(95, 99, hold=True)), last.repeat(4, axis=0))
    assert np.array_equal(as_bytes(footage.read(500, 502, hold=True)), last.repeat(2, axis=0)), "after a close as well"
    footage.close()


@pytest.mark.parametrize("fps", [4, 25, 100])
def test_a_picture_is_one_at_any_rate(tmp_path: Path, fps: int) -> None:
    Image.new("RGB", (24, 20), (255, 0, 0)).save(tmp_path / "red.png")
    with Footage(tmp_path / "red.png", fps=fps, size=SIZE) as footage:
        assert footage.is_still
        assert footage.length is None
        assert footage.read(0, 3).shape[2] == 1
        held = footage.read(7, 10, hold=True)
    assert held.shape == (1, 3, 3, *SIZE)
    assert held[0, :, 0, 0, 0].tolist() == [1, 0, 0]


def test_what_cannot_be_decoded_is_named(clip: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mkv"
    content = bytearray(clip.read_bytes())
    content[1000:] = bytes(len(content) - 1000)
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.mkv"), Footage(damaged, fps=25, size=SIZE) as footage:
        footage.read(0, 90)
    with pytest.raises(InputError, match=r"none\.mp4' does not exist"):
        Footage(tmp_path / "none.mp4", fps=25, size=SIZE)


# In memory


def test_a_clip_in_memory_is_read_as_its_file(clip: Path) -> None:
    frames = read_video(clip)
    given = [
        *((frames, 25), (torch.from_numpy(frames), 25.0), (frames / 255, 25), ([*map(Image.fromarray, frames)], 25)),
        *([list(frames), 25], Clip(frames, Fraction(25)), clip.read_bytes()),
    ]
    for fps in (25, 16, 30):
        whole = read_video(clip, fps=fps, size=SIZE)
        for value in given:
            with Footage(value, fps=fps, size=SIZE) as footage:
                assert footage.length == len(whole)
                for start, stop in ((0, 9), (4, 13), (70, 200)):
                    assert np.array_equal(as_bytes(footage.read(start, stop)), whole[start:stop])
            assert np.array_equal(read_video(value, fps=fps, size=SIZE), whole)


def test_a_picture_in_memory_is_one_that_lasts() -> None:
    for value in (Image.new("RGB", (24, 20), "red"), torch.ones(3, 20, 24), (np.ones((1, 20, 24, 3)), 25)):
        with Footage(value, fps=25, size=SIZE) as footage:
            assert footage.is_still
            assert footage.read(7, 10, hold=True)[0, 0, :, 0, 0].tolist() == [1, 1, 1]


FRAMES = np.zeros((4, 20, 24, 3), np.uint8)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (FRAMES, r"^video: which frame rate\? give \(frames, fps\)$"),
        (torch.from_numpy(FRAMES), "which frame rate"),
        ([*FRAMES], "which frame rate"),
        ((FRAMES, "x"), "a frame rate is a number, not str"),
        ((FRAMES, 0), "has 0 frames a second; more than 0 and up to 1000"),
        ((FRAMES, float("nan")), "has nan frames a second"),
        ((FRAMES[:0], 25), "holds no frames"),
        (([], 25), "holds no frames"),
        (([Image.new("RGB", (24, 20)), Image.new("RGB", (20, 24))], 25), "the same size; these are 20x24, 24x20"),
        ((FRAMES[..., :2], 25), r"not \(ndarray \(4, 20, 24, 2\) uint8, fps\)"),
        ((FRAMES.astype(np.int32), 25), "pixels are uint8, or float from 0 to 1, not int32"),
        (5, "not int"),
        (b"", "is empty"),
        (b"hello", "of 5 bytes in memory is not a media file"),
        ("", "the path is empty"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_video_is_one_line(value: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        Footage(value, fps=25, size=SIZE)
    assert len(single_line(caught.value)) < 200


@pytest.mark.parametrize("count", [1, 40, 73, 200])
def test_the_last_pictures_wherever_the_end_is(clip: Path, count: int) -> None:
    with Footage(clip, fps=25, size=SIZE) as footage:
        assert np.array_equal(as_bytes(footage.last(count)), read_video(clip, size=SIZE)[-count:])
