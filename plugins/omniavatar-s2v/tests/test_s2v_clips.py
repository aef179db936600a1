"""Clips: which frames each denoises, continues and shows."""

from __future__ import annotations

import pytest
from omniavatar_s2v.clips import first_span, plan_clips

from omniavatar.engine.windows import Span
from omniavatar.testing.models import WAN

PICTURE = first_span(continues=False)
PAST = first_span(continues=True)


def test_the_first_clip_begins_with_the_picture_and_the_next_continues_it() -> None:
    assert plan_clips(157, 80, PICTURE, full=False) == [
        Span(-4, 77, given=1, keep_start=0, keep_stop=77),
        Span(77 - 73, 157, given=73, keep_start=77, keep_stop=157),
    ]


def test_after_an_earlier_video_every_clip_is_alike() -> None:
    assert plan_clips(160, 80, PAST, full=False) == [
        Span(-73, 80, given=73, keep_start=0, keep_stop=80),
        Span(7, 160, given=73, keep_start=80, keep_stop=160),
    ]


@pytest.mark.parametrize("first", [PICTURE, PAST], ids=["picture", "past"])
@pytest.mark.parametrize("frames", [1, 2, 5, 76, 77, 78, 80, 81, 157, 158, 400])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("length", [80, 48, 4])
def test_every_frame_is_shown_once_and_whole_latent_frames_are_denoised(
    first: Span, frames: int, full: bool, length: int
) -> None:
    spans = plan_clips(frames, length, first, full=full)
    shown = [frame for span in spans for frame in range(span.keep_start, span.keep_stop)]
    assert shown == list(range(frames))
    for span in spans:
        new = span.frames - span.given
        assert new % 4 == 0
        assert WAN.latent_frames(span.frames) - WAN.latent_frames(span.given) == new // 4
        assert new == length or (not full and span is spans[-1] and new < length)
        assert span.frames % 4 == 1
        assert span.keep.start == max(span.given, span.keep_start - span.start) < span.keep.stop <= span.frames


def test_the_last_clip_stops_with_the_video() -> None:
    (_, last) = plan_clips(80, 80, PICTURE, full=False)
    assert (last.frames - last.given, last.keep_stop - last.keep_start) == (4, 3)
    (_, last) = plan_clips(80, 80, PICTURE, full=True)
    assert (last.frames - last.given, last.keep_stop - last.keep_start) == (80, 3)
