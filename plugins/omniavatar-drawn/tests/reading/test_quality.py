"""Figures of videos: each finds what it is there for, and nothing else moves it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from omniavatar_drawn.faces import Identity, Pose, render
from omniavatar_drawn.faces.identity import Shade
from omniavatar_drawn.faces.palette import CLOTHES, WALLS
from omniavatar_drawn.reading import quality
from omniavatar_drawn.reading.alignment import Alignment
from omniavatar_drawn.reading.detector import Reading
from omniavatar_drawn.reading.quality import DEEP, Spoken

from omniavatar.errors import InputError

FRAMES = 101
HOME = Alignment(60 + 58j, 28 + 0j, 128)


def truth() -> np.ndarray:
    """Syllables (t 2) between pauses of 20 frames at the beginning, in the middle and at the end."""
    time = np.arange(FRAMES)
    opening = np.abs(np.sin(0.4 * time)) * (0.6 + 0.4 * np.sin(0.13 * time))
    for pause in (slice(0, 20), slice(45, 65), slice(-15, None)):
        opening[pause] = 0
    return np.stack([opening, 0.5 + 0.4 * np.sin(0.5 * time)], axis=1)


def reading(opening: np.ndarray | None = None) -> Reading:
    """What is seen of a head that does not move and keeps its looks."""
    true = truth()
    opening = true[:, 0] if opening is None else opening
    colours = np.full((FRAMES, 4, 3), 0.5)
    return Reading(
        opening=opening,
        width=np.where(opening > 0.15, true[:, 1], np.nan),
        likeness=np.full(FRAMES, 0.9),
        colours=colours,
        reference_colours=colours[0],
        alignments=(HOME,) * FRAMES,
    )


def spoken(opening: np.ndarray | None = None) -> Spoken:
    return Spoken(reading(opening), truth())


def late(frames: int) -> np.ndarray:
    return np.roll(truth()[:, 0], frames)


@pytest.mark.parametrize("frames", [-2, 0, 3])
def test_the_lag_of_all_videos_is_found(frames: int) -> None:
    sync = quality.synchrony([spoken(late(frames)), spoken(0.5 * late(frames))])
    assert sync.lag == frames
    assert sync.correlation == pytest.approx(1, abs=0.01)
    assert len(sync.each) == 2


def test_one_lag_holds_for_all_videos() -> None:
    sync = quality.synchrony([spoken(), spoken(), spoken(late(3))])
    assert sync.lag == 0
    assert sync.each[:2] == pytest.approx((1, 1))
    assert sync.each[2] < 0.8


def test_a_mouth_that_does_not_move_does_not_follow() -> None:
    assert quality.synchrony([spoken(np.zeros(FRAMES))]).correlation == 0


def test_the_width_counts_where_the_mouth_is_open() -> None:
    assert spoken().width_correlation() == pytest.approx(1)
    assert np.isnan(spoken(np.zeros(FRAMES)).width_correlation())


def test_silence_is_deep() -> None:
    silence = np.flatnonzero(spoken().is_silence)
    opened = np.flatnonzero(truth()[:, 0] > 0)
    assert len(silence) > 25
    assert 0 not in silence
    assert min(abs(frame - other) for frame in silence for other in opened) == DEEP + 1


def test_a_mouth_open_in_silence_is_found_and_a_late_one_is_not() -> None:
    assert quality.opening_in_silence([spoken()]) == 0
    assert quality.opening_in_silence([spoken(late(3))]) == 0
    leaking = quality.opening_in_silence([spoken(np.maximum(truth()[:, 0], 0.1))])
    assert leaking == pytest.approx(0.1 / quality.mean_opening([spoken()]), rel=0.05)
    assert np.isnan(quality.opening_in_silence([Spoken(reading(), np.ones((FRAMES, 2)))]))


def test_frame_0_does_not_count() -> None:
    seen = reading()
    seen.likeness[0] = 0
    seen.colours[0] = 0.9
    assert quality.likeness(seen) == pytest.approx(0.9)
    shifts = quality.colour_shifts(replace(seen, reference_colours=np.full((4, 3), 0.45)))
    assert shifts == pytest.approx(dict.fromkeys(("skin", "hair", "clothes", "background"), 0.05))
    assert max(quality.drift(seen).values()) == 0


def test_drift_is_that_of_the_last_second() -> None:
    seen = reading()
    seen.colours[-25:, 2, 1] += 0.04
    seen.likeness[-25:] -= 0.1
    assert quality.drift(seen) == pytest.approx(
        {"skin": 0, "hair": 0, "clothes": 0.04, "background": 0, "likeness": 0.1}
    )
    with pytest.raises(InputError, match="101 frames has no drift over 60"):
        quality.drift(seen, 60)


def test_a_jump_at_a_border_is_measured_by_what_is_usual() -> None:
    shades = np.cumsum(np.r_[np.full(20, 2.0), 6, np.full(20, 2.0)])
    frames = np.broadcast_to(shades.astype(np.uint8)[:, None, None, None], (41, 128, 128, 3)).copy()
    assert quality.border_jumps(frames, [10, 20], HOME) == pytest.approx([1, 3])
    assert quality.border_jumps(frames, [], HOME).size == 0


def test_a_mouth_at_a_border_and_what_cannot_be_seen_are_no_jumps() -> None:
    who = Identity.from_seed(1)
    closed, opened = render(who, Pose(), (0, 0.5), 128), render(who, Pose(blink=1), (1, 0.5), 128)
    frames = np.stack([closed] * 10 + [opened] * 10)
    home = Alignment(complex(0.5, 0.455) * 128, complex(0.222 * who.head_size * 128), 128)
    assert quality.border_jumps(frames, [10], home).max() < 1.5
    assert quality.border_jumps(frames, [10]).max() > 1.5
    assert quality.border_jumps(np.stack([closed] * 10 + [closed + 1] * 10), [10], home).max() > 1.5


def test_head_motion_is_that_around_the_mean_place() -> None:
    swaying = tuple(replace(HOME, centre=HOME.centre + 1.28 * (-1) ** n) for n in range(FRAMES))
    assert quality.head_motion(replace(reading(), alignments=swaying)) == pytest.approx(0.01)
    assert quality.head_motion(reading()) == 0


def test_the_colours_of_a_scene_are_named() -> None:
    who = Identity.from_seed(4)
    for shirt, wall in zip(CLOTHES, WALLS, strict=True):
        shown = replace(
            who,
            clothes="t-shirt",
            wall="plain",
            clothes_colour=Shade(shirt, CLOTHES[shirt]),
            wall_colour=Shade(wall, WALLS[wall]),
        )
        seen = quality.scene_colours(render(shown, Pose(), (0, 0.5), 128)[None])
        assert quality.nearest_colour(seen["clothes"], CLOTHES) == shirt
        assert quality.nearest_colour(seen["background"], WALLS) == wall


def test_frames_and_truth_must_go_together() -> None:
    with pytest.raises(InputError, match="101 frames and a truth of 90"):
        Spoken(reading(), truth()[:90])
