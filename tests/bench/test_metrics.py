"""Metrics of packages: what they are given, and what is no metric."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omniavatar.bench.measurements import Asking, heard, portrait, video_of
from omniavatar.bench.probe import Made
from omniavatar.metrics import MadeVideo, Metric, metric_fault

GREY = np.full((3, 16, 16, 3), 100, np.uint8)


def brightness(video: MadeVideo) -> float:
    return float(video.frames.mean())


def made(frames: np.ndarray | None, silence: float = 0.3) -> Made:
    return Made(frames, [], (2,), silence, (16, 16))


def test_a_metric_is_not_asked_where_something_is_missing() -> None:
    def opened(video: MadeVideo) -> float:
        assert video.portrait is not None
        return 1.0

    metric = Metric("x", "x", opened, needs=("portrait",))
    assert metric.of(MadeVideo(GREY, 25)) is None
    assert metric.of(MadeVideo(GREY, 25, portrait=GREY[0])) == 1
    assert Metric("x", "x", lambda video: float("nan")).of(MadeVideo(GREY, 25)) is None


def test_metrics_share_their_work() -> None:
    video, calls = MadeVideo(GREY, 25), []
    assert [video.once("x", lambda: calls.append(1) or 7) for _ in range(2)] == [7, 7]  # type: ignore[func-returns-value]
    assert calls == [1]


def test_a_heading_has_the_unit() -> None:
    assert Metric("sync-distance", "x", brightness, unit="px").heading == "sync-distance px"
    assert Metric("sync-distance", "x", brightness, label="sync").heading == "sync"


@pytest.mark.parametrize(
    ("metric", "fault"),
    [
        (brightness, "is not a Metric"),
        (Metric("Sync C", "x", brightness), "a metric has the name 'Sync C'; give lower-case words with hyphens"),
        (Metric("x", "x", None), "metric 'x' has no function 'measure'"),  # type: ignore[arg-type]
        (
            Metric("x", "x", brightness, needs=("lips",)),  # type: ignore[arg-type]
            "metric 'x' needs 'lips'; choices: portrait, sound, reference",
        ),
        (
            Metric("x", "x", brightness, better="more"),  # type: ignore[arg-type]
            "metric 'x' is better 'more'; choices: 'higher', 'lower', None",
        ),
        (Metric("sync", "x", brightness), "metric 'sync' exists already"),
        (Metric("x", "x", brightness, label="sync"), "metric 'x' has the heading 'sync', which 'sync' has already"),
        (Metric("x", "x", brightness), ""),
    ],
)
def test_what_is_no_metric(metric: Any, fault: str) -> None:
    found = metric_fault(metric, [Metric("sync", "x", brightness)])
    assert found.endswith(fault)
    assert bool(found) == bool(fault)


def test_a_video_as_metrics_get_it() -> None:
    voice = np.ones(16000, np.float32)
    inputs = {"image": GREY[0], "audio": (voice, 16000), "prompt": "Hello."}
    video = video_of(made(GREY), inputs, 25, made(GREY + np.uint8(1)), "faces")
    assert video is not None
    assert video.portrait is not None
    assert video.sound is not None
    assert video.reference is not None
    assert np.abs(video.portrait.astype(int) - 100).max() <= 1
    assert np.flatnonzero(video.sound)[0] == round((0.3 + 1 / 25) * 16000), (
        "the sound begins behind frame 0 and silence"
    )
    assert (video.fps, video.prompt, video.chunk_starts, video.generator) == (25, "Hello.", (2,), "faces")
    assert (video.reference == 101).all()


def test_what_is_not_there_is_none() -> None:
    assert video_of(made(None), {}, 25, None, None) is None
    video = video_of(made(GREY), {}, 25, made(GREY[:2]), None)
    assert video is not None
    assert (video.portrait, video.sound, video.reference, video.prompt) == (None, None, None, "")
    assert portrait("no such file.png", (16, 16)) is None
    assert heard("no such file.wav", 0) is None  # type: ignore[arg-type]


def test_a_metric_that_goes_wrong_is_asked_no_more() -> None:
    calls = []

    def odd(video: MadeVideo) -> float:
        calls.append(video)
        if len(calls) == 2:
            raise ValueError("odd\nvideo")
        return 1.0

    asking = Asking({"package": [Metric("odd", "x", odd), Metric("brightness", "x", brightness)]})
    numbers = [asking.numbers(MadeVideo(GREY, 25)) for _ in range(3)]
    assert len(calls) == 2
    assert asking.faults == {("package", "odd"): "ValueError: odd video"}
    assert [(one.name, one.values.values) for one in asking.measured(numbers)] == [("brightness", (100, 100, 100))]
