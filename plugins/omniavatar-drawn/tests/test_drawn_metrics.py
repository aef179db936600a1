"""What is read from videos of drawn faces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from omniavatar_drawn.faces.clips import Clip
from omniavatar_drawn.generator import NAME, UNSEEN, FaceClips
from omniavatar_drawn.metrics import METRICS

from omniavatar.bench.measurements import heard, portrait
from omniavatar.metrics import MadeVideo
from omniavatar.plugins import discover

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


Video = Callable[..., MadeVideo]


@pytest.fixture(scope="module")
def video() -> Video:
    """`video(frames)`: one of the drawn face, with its portrait and sound; a chunk begins at frame 33."""
    picture = portrait(FaceClips.unseen(3).pictures(0, 1)[0], (SIDE, SIDE))
    voice = heard((sound(), 16000), 0.3 + 1 / 25)

    def made(frames: np.ndarray, **changes: object) -> MadeVideo:
        values = {"fps": 25, "portrait": picture, "sound": voice, "chunk_starts": (33,), "generator": NAME}
        return MadeVideo(frames, **{**values, **changes})  # type: ignore[arg-type]

    return made


def figures(video: MadeVideo) -> dict[str, float]:
    found = {metric.name: metric.of(video) for metric in METRICS}
    return {name: number for name, number in found.items() if number is not None}


def test_omni_bench_gets_them_by_discovery() -> None:
    assert discover().metrics()["omniavatar-drawn"] == list(METRICS)


def test_the_renderers_own_video_is_good(video: Video, drawn: np.ndarray) -> None:
    found = figures(video(drawn))
    assert set(found) == {metric.name for metric in METRICS}
    assert found["mouth-correlation"] > 0.85
    assert abs(found["mouth-lag"]) <= 1
    assert found["identity-ssim"] > 0.8
    assert found["border-jump"] < 2
    assert found["drift"] < 0.05


def test_faults_show_in_their_own_figure(video: Video, drawn: np.ndarray) -> None:
    jumping = drawn.copy()
    jumping[33:] = (jumping[33:] * 0.8).astype(np.uint8)
    assert figures(video(jumping))["border-jump"] > 5
    frozen = np.repeat(drawn[:1], len(drawn), axis=0)
    assert abs(figures(video(frozen))["mouth-correlation"]) < 0.5


def test_a_video_is_read_once(video: Video, drawn: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    made = video(drawn[:20], chunk_starts=())
    first = figures(made)
    monkeypatch.setattr("omniavatar_drawn.metrics.Detector", None)
    assert figures(made) == first


def test_what_cannot_be_read_is_nothing(video: Video, drawn: np.ndarray) -> None:
    assert figures(video(drawn, fps=24)) == {}
    assert figures(video(drawn, portrait=None)) == {}
    assert figures(video(drawn[:, :, :48])) == {}
    assert figures(video(drawn, generator=None)) == {}, "a user's own picture may be a photograph"


def test_without_a_sound_the_face_is_read(video: Video, drawn: np.ndarray) -> None:
    assert set(figures(video(drawn[:20], sound=None, chunk_starts=()))) == {"identity-ssim"}
