"""Window arithmetic: every frame exactly once, lengths the VAE can hold, and messages for what cannot work."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from omniavatar.engine.geometry import Geometry
from omniavatar.engine.windows import Span, audio_rows, check_windows, plan_spans
from omniavatar.errors import PlanError
from omniavatar.testing.models import WAN

RANDOM = random.Random(7)
LENGTHS = [*range(1, 40), *(RANDOM.randrange(40, 4000) for _ in range(40))]
SHAPES = [(5, 1), (9, 5), (13, 1), (57, 13), (105, 13), (105, 101)]


@pytest.mark.parametrize(("window", "overlap"), SHAPES)
@pytest.mark.parametrize("full", [False, True])
def test_windows_cover_every_frame_once(window: int, overlap: int, full: bool) -> None:
    for length in LENGTHS:
        spans = plan_spans(length, window, overlap, WAN, full=full)
        kept = [frame for span in spans for frame in range(span.keep_start, span.keep_stop)]
        assert kept == list(range(length))
        assert all(span.frames % 4 == 1 for span in spans)
        assert all(0 <= span.keep.start < span.keep.stop <= span.frames for span in spans)


@pytest.mark.parametrize(("window", "overlap"), SHAPES)
def test_a_window_starts_with_frames_of_the_one_before(window: int, overlap: int) -> None:
    spans = plan_spans(1000, window, overlap, WAN)
    assert spans[0].given == 1
    for before, span in pairwise(spans):
        assert span.given == overlap
        assert before.stop - span.start == overlap
        assert span.keep_start == span.start + overlap == before.keep_stop


def test_the_first_window_has_no_given_frame_without_a_picture() -> None:
    spans = plan_spans(30, 9, 5, WAN, first_given=0)
    assert [span.given for span in spans[:2]] == [0, 5]


def test_only_the_last_window_is_cut_and_only_as_far_as_the_vae_allows() -> None:
    for length in LENGTHS:
        *others, last = plan_spans(length, 57, 13, WAN)
        assert all(span.frames == 57 for span in others)
        assert length <= last.stop < length + 4 or last.frames == 57
        assert {span.frames for span in plan_spans(length, 57, 13, WAN, full=True)} == {57}


def test_latent_frames() -> None:
    assert [WAN.latent_frames(frames) for frames in (0, 1, 5, 9, 13, 105)] == [0, 1, 2, 3, 4, 27]
    assert [WAN.rounded_up(frames) for frames in (0, 1, 2, 5, 6, 104, 105)] == [1, 1, 5, 5, 9, 105, 105]
    span = Span(44, 53, given=5, keep_start=49, keep_stop=52)
    assert (span.frames, WAN.latent_frames(span.frames), WAN.latent_frames(span.given)) == (9, 3, 2)
    assert span.keep == slice(5, 8)


def test_another_vae_counts_otherwise() -> None:
    """Eight frames a latent, 32 pixels, tokens of two latent frames."""
    other = Geometry(channels=128, temporal_factor=8, spatial_factor=32, patch_size=(2, 1, 1))
    assert [other.latent_frames(frames) for frames in (0, 1, 9, 17)] == [0, 1, 2, 3]
    assert [other.frames(count) for count in (0, 1, 2, 3)] == [0, 1, 9, 17]
    assert [other.rounded_up(frames) for frames in (1, 9, 10, 25, 26)] == [9, 9, 25, 25, 41]
    assert [other.rounded_down(frames) for frames in (8, 9, 24, 25)] == [-7, 9, 9, 25]
    assert (other.token, other.multiple) == ((16, 32, 32), 32)
    assert other.frames_for(100, 64, 64) == 393
    assert [span.frames for span in plan_spans(50, 25, 9, other)] == [25, 25, 25]
    with pytest.raises(PlanError, match=r"overlap of 13 frames is not 8n\+1; the nearest are 9 and 17"):
        check_windows(25, 13, other)
    with pytest.raises(PlanError, match=r"window length of 33 frames is not 16n\+9; the nearest are 25 and 41"):
        check_windows(33, 17, other)


@pytest.mark.parametrize(
    ("height", "width", "frames"), [(400, 720, 105), (720, 720, 57), (528, 960, 57), (720, 1280, 33)]
)
def test_frames_of_the_published_sizes(height: int, width: int, frames: int) -> None:
    assert WAN.frames_for(30_000, height, width) == frames


def test_audio_rows_are_exact_where_floating_point_is_not() -> None:
    wrong = []
    for rows in range(1, 2001):
        assert audio_rows(rows * 640, 16000, 25) == rows
        assert audio_rows(rows * 640 + 1, 16000, 25) == rows + 1
        if audio_rows(rows * 640, 16000, 25, float_ceil=True) != rows:
            wrong.append(rows)
    assert wrong[:6] == [7, 14, 28, 55, 56, 109]


@pytest.mark.parametrize(
    ("window", "overlap", "message"),
    [
        (12, 5, "window length of 12 frames is not 4n+1; the nearest are 9 and 13"),
        (13, 6, "overlap of 6 frames is not 4n+1; the nearest are 5 and 9"),
        (13, 13, "a window of 13 frames is not longer than its overlap of 13; make it longer"),
        (-3, 13, "a window of 0 frames is not longer than its overlap of 13; make it longer"),
    ],
)
def test_impossible_windows_are_refused(window: int, overlap: int, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_windows(window, overlap, WAN)
    assert str(caught.value).startswith(message)


def test_a_budget_too_small_for_the_picture_says_what_to_change() -> None:
    with pytest.raises(PlanError, match=r"make it longer"):
        plan_spans(50, WAN.frames_for(64, 720, 1280), 13, WAN)
