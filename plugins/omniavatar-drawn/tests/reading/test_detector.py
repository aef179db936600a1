"""What the detector reads from drawn frames is what was drawn, also through blur, noise and tint."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from omniavatar_drawn.faces import Identity, Performance, Pose, Renderer, render
from omniavatar_drawn.faces.renderer import HALF_WIDTH, HEAD_CENTRE
from omniavatar_drawn.reading.alignment import blurred, locate_face
from omniavatar_drawn.reading.detector import REGIONS, Detector, best_lag, correlation, read_clip, ssim_map

from omniavatar.errors import InputError

FRAMES = 33
SEEDS = (1, 6, 7, 12, 16, 24)


def truth(seed: int) -> np.ndarray:
    """Openings (t): syllables between two rests."""
    time = np.arange(FRAMES)
    syllables = np.abs(np.sin(time * (0.35 + 0.03 * (seed % 5)))) * (0.6 + 0.4 * np.sin(time * 0.13 + seed))
    syllables[:4] = syllables[-6:] = 0
    result: np.ndarray = np.clip(syllables, 0, 1)
    return result


@cache
def drawn(seed: int, size: int = 128) -> np.ndarray:
    renderer, performance = Renderer(Identity.from_seed(seed), size), Performance.from_seed(seed, manner="lively")
    widths = 0.5 + 0.4 * np.sin(np.arange(FRAMES) * 0.5)
    poses = map(performance.pose, range(FRAMES))
    return np.stack([renderer.draw(*shown) for shown in zip(poses, zip(truth(seed), widths, strict=True), strict=True)])


def spoilt(frames: np.ndarray, *, sigma: float = 1.0, noise: float = 5.0) -> np.ndarray:
    """As a neural decoder might return them: soft, noisy, a little warmer."""
    soft = np.stack([blurred(frame.astype(np.float32), sigma) for frame in frames])
    tinted = soft * (1.04, 0.98, 0.95) + (4, -3, 3)
    result: np.ndarray = np.clip(tinted + np.random.default_rng(0).normal(0, noise, frames.shape), 0, 255)
    return result.astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_opening_is_read(seed: int) -> None:
    reading = read_clip(drawn(seed))
    assert correlation(reading.opening, truth(seed)) > 0.985
    assert best_lag(reading.opening, truth(seed)) == 0
    assert reading.opening[truth(seed) == 0].max() < 0.05
    assert abs(reading.opening - truth(seed)).mean() < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS[:4])
def test_the_opening_is_read_through_blur_noise_and_tint(seed: int) -> None:
    reading = read_clip(spoilt(drawn(seed)), drawn(seed)[0])
    assert correlation(reading.opening, truth(seed)) > 0.97
    assert reading.opening[truth(seed) == 0].mean() < 0.05


def test_other_sizes_are_read() -> None:
    assert correlation(read_clip(drawn(7, 96)).opening, truth(7)) > 0.98


def test_a_mouth_that_does_not_follow_is_found_out() -> None:
    frames = drawn(12)
    assert correlation(read_clip(np.concatenate([frames[:1], frames[:0:-1]])).opening, truth(12)) < 0.5
    late = np.concatenate([frames[:1]] * 3 + [frames[1:-2]])
    assert best_lag(read_clip(late).opening, truth(12)) == 2
    closed = np.stack([render(Identity.from_seed(12), Pose(x=x), (0, 0.5), 128) for x in (0, 0.01, 0.02)])
    assert read_clip(closed).opening.max() < 0.03


def test_a_half_amplitude_reads_as_half() -> None:
    renderer = Renderer(Identity.from_seed(6), 128)
    full, half = (
        read_clip(np.stack([renderer.draw(Pose(), (scale * o, 0.5)) for o in truth(6)])).opening for scale in (1, 0.5)
    )
    assert half.max() / full.max() == pytest.approx(0.5, abs=0.05)


def test_the_width_of_an_open_mouth_is_read() -> None:
    renderer = Renderer(Identity.from_seed(1), 128)
    widths = np.linspace(0, 1, 9)
    frames = np.stack([renderer.draw(Pose()), *(renderer.draw(Pose(), (0.6, width)) for width in widths)])
    reading = read_clip(frames)
    assert np.isnan(reading.width[0])
    assert correlation(reading.width[1:], widths) > 0.95


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_the_face_is_found(seed: int) -> None:
    who, pose = Identity.from_seed(seed), Performance.from_seed(seed).pose(0)
    found = locate_face(render(who, pose, (0, 0.5), 128))
    assert found.x == pytest.approx(HEAD_CENTRE[0] + pose.x, abs=0.035)
    assert found.y == pytest.approx(HEAD_CENTRE[1] + pose.y, abs=0.035)
    assert found.half_width == pytest.approx(HALF_WIDTH * who.head_size * pose.scale, rel=0.1)
    left, top, right, bottom = found.box
    assert left < found.x < right
    assert top < found.y < bottom


def test_the_head_is_followed() -> None:
    renderer = Renderer(Identity.from_seed(16), 128)
    poses = [Pose(x=0.002 * n, y=-0.001 * n, angle=0.4 * n, scale=1 + 0.003 * n) for n in range(12)]
    places = read_clip(spoilt(np.stack([renderer.draw(pose) for pose in poses]))).alignments
    assert places[-1].x - places[0].x == pytest.approx(0.022, abs=0.004)
    assert places[-1].y - places[0].y == pytest.approx(-0.011, abs=0.004)
    assert places[-1].degrees - places[0].degrees == pytest.approx(4.4, abs=0.7)
    assert places[-1].half_width / places[0].half_width == pytest.approx(1.033, abs=0.01)


def test_likeness_tells_the_same_face_from_others() -> None:
    frames = drawn(7)
    assert read_clip(frames).likeness.mean() > 0.9
    stranger = drawn(24)[:3]
    assert Detector(frames[0]).read(stranger).likeness.max() < 0.7


def test_the_mouth_and_eyes_do_not_count_for_likeness() -> None:
    renderer = Renderer(Identity.from_seed(1), 128)
    frames = np.stack([renderer.draw(Pose()), renderer.draw(Pose(blink=1, gaze_x=1), (1, 1))])
    assert read_clip(frames).likeness.min() > 0.93


@pytest.mark.parametrize(("region", "box"), [("clothes", (112, 128, 0, 128)), ("background", (0, 32, 0, 128))])
def test_a_change_of_colour_is_placed(region: str, box: tuple[int, int, int, int]) -> None:
    frame = render(Identity.from_seed(1), Pose(), (0, 0.5), 128)
    changed = frame.copy()
    top, bottom, left, right = box
    changed[top:bottom, left:right] //= 2
    shift = read_clip(np.stack([frame, changed])).colour_shift
    assert shift[0].max() < 0.005
    assert shift[1, REGIONS.index(region)] > 0.1
    assert shift[1, REGIONS.index("skin")] < 0.01


def test_a_drawn_clip_keeps_its_colours() -> None:
    assert read_clip(drawn(6)).colour_shift.max() < 0.05


def test_ssim_is_1_for_equal_pictures_and_falls_with_noise() -> None:
    picture = drawn(1)[0].astype(np.float32).mean(axis=2)
    noise = np.random.default_rng(0).normal(0, 20, picture.shape).astype(np.float32)
    assert ssim_map(picture, picture).mean() == pytest.approx(1)
    assert ssim_map(picture, picture + noise).mean() < 0.7


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        read_clip(np.zeros((0, 64, 64, 3), np.uint8))
    with pytest.raises(InputError, match=r"\(64, 48, 3\)"):
        read_clip(np.zeros((2, 64, 48, 3), np.uint8))
    with pytest.raises(InputError, match=r"\(32, 32, 3\)"):
        Detector(drawn(1)[0]).read(np.zeros((2, 32, 32, 3), np.uint8))
