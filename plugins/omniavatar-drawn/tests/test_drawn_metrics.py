"""Procedural heads as inputs, and what is read from videos of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omniavatar.bench.avatar import UNSEEN, Readings, face_inputs
from omniavatar_drawn.faces.clips import Clip

from omniavatar.bench.probe import Made
from omniavatar.media.image import load_image

SIDE, SECONDS = 64, 2.1


def sound() -> np.ndarray:
    """Syllables of a buzz (n,) float32 at 16 kHz."""
    time = np.arange(round(SECONDS * 16000)) / 16000
    voice = np.sin(2 * np.pi * 160 * time) + np.sin(2 * np.pi * 640 * time)
    wave: np.ndarray = (0.2 * voice * np.maximum(0, np.sin(2 * np.pi * 3.1 * time))).astype(np.float32)
    return wave


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.from_seed(UNSEEN + 3, round(SECONDS * 25) + 1, np.concatenate([np.zeros(4800, np.float32), sound()]))


@pytest.fixture(scope="module")
def drawn(clip: Clip) -> np.ndarray:
    return clip.pictures(SIDE)


def made(frames: np.ndarray | None) -> Made:
    return Made(frames, [], (33,), 0.3, (SIDE, SIDE))


def test_a_head_for_every_seed(tmp_path: Path, clip: Clip) -> None:
    inputs = face_inputs(3, tmp_path / "new")
    assert inputs["prompt"] == clip.caption
    assert load_image(inputs["image"]).shape == (256, 256, 3)
    other = face_inputs(4, tmp_path / "new")
    assert not np.array_equal(load_image(other["image"]), load_image(inputs["image"]))


def test_the_renderers_own_video_is_good(tmp_path: Path, drawn: np.ndarray) -> None:
    readings = Readings()
    inputs = {**face_inputs(3, tmp_path), "audio": (sound(), 16000)}
    readings.add(made(drawn), inputs, 25)
    avatar = readings.avatar()
    assert avatar is not None
    assert avatar.mouth_correlation is not None
    assert avatar.border_jump is not None
    assert avatar.drift is not None
    assert avatar.mouth_correlation.median > 0.85
    assert abs(avatar.mouth_lag or 0) <= 1
    assert avatar.identity_ssim.median > 0.8
    assert avatar.border_jump.median < 2
    assert avatar.drift.median < 0.05


def test_faults_show_in_their_own_figure(tmp_path: Path, drawn: np.ndarray) -> None:
    inputs = {**face_inputs(3, tmp_path), "audio": (sound(), 16000)}
    jumping = drawn.copy()
    jumping[33:] = (jumping[33:] * 0.8).astype(np.uint8)
    frozen = np.repeat(drawn[:1], len(drawn), axis=0)
    found = []
    for faulty in (jumping, frozen):
        readings = Readings()
        readings.add(made(faulty), inputs, 25)
        avatar = readings.avatar()
        assert avatar is not None
        found.append(avatar)
    assert found[0].border_jump is not None
    assert found[0].border_jump.median > 5
    assert found[1].mouth_correlation is not None
    assert abs(found[1].mouth_correlation.median) < 0.5


def test_what_cannot_be_read_is_nothing(tmp_path: Path, drawn: np.ndarray) -> None:
    readings = Readings()
    inputs = {**face_inputs(3, tmp_path), "audio": (sound(), 16000)}
    readings.add(made(None), inputs, 25)
    readings.add(made(drawn), inputs, 24)
    readings.add(made(drawn), {"audio": (sound(), 16000)}, 25)
    readings.add(Made(drawn[:, :, :48], [], (), 0.3, (64, 48)), inputs, 25)
    assert readings.avatar() is None


def test_without_a_sound_the_face_is_read(tmp_path: Path, drawn: np.ndarray) -> None:
    readings = Readings()
    readings.add(Made(drawn[:20], [], (), 0.3, (SIDE, SIDE)), face_inputs(3, tmp_path), 25)
    avatar = readings.avatar()
    assert avatar is not None
    assert (avatar.mouth_correlation, avatar.border_jump, avatar.drift) == (None, None, None)
