"""A window in pieces: which, how they are blended, and that each sees its own frames only."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from omniavatar.engine.scopes import Forward, Window
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import FakeDiT
from omniavatar.units import CfgMerge, SlidingWindow, TeaCache
from omniavatar.units.sliding_window import blend, pieces, ramp
from tests.scenes import Scene, fake_engine, fake_models, request, video_of
from tests.scenes import denoising_units as units


class Look:
    """Notes the frames of every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []

    @hookimpl(trylast=True)
    def embed(self, forward: Forward) -> None:
        names = "+".join(branch.name for branch in forward.branches)
        self.calls.append((names, sorted(set(forward.frame_index.tolist()))))


def run(*more: Any, frames: int = 25) -> tuple[Look, Any]:
    """A job of one window, whose network adds the same to every token."""
    look, scene = Look(), Scene(frames=frames, texts=(0.03, -0.01))
    _, *denoising = units(steps=4, scale=3.0)
    fake_engine([scene, *denoising, *more], models=fake_models(), observers=[look]).generate(request())
    return look, scene


def test_every_piece_is_a_call_about_its_frames() -> None:
    look, scene = run(SlidingWindow(size=4, stride=3))
    assert look.calls[:4] == [
        (name, frames) for name in ("positive", "negative") for frames in ([0, 1, 2, 3], [3, 4, 5, 6])
    ]
    torch.testing.assert_close(video_of(scene), video_of(run()[1]))


def test_a_window_that_fits_is_left_whole() -> None:
    look, _ = run(SlidingWindow(size=7, stride=3))
    assert look.calls[0] == ("positive", [0, 1, 2, 3, 4, 5, 6])


def test_pieces_of_branches_in_one_batch() -> None:
    look, scene = run(CfgMerge(), SlidingWindow(size=4, stride=3))
    assert look.calls[:2] == [("positive+negative", [0, 1, 2, 3]), ("positive+negative", [3, 4, 5, 6])]
    torch.testing.assert_close(video_of(scene), video_of(run()[1]))


def test_a_cache_remembers_every_piece_for_itself() -> None:
    _, scene = run(SlidingWindow(size=4, stride=3), TeaCache(threshold=0.5))
    (schedule,) = scene.windows[0]["teacache.schedules"].values()
    assert any(schedule.skips)
    torch.testing.assert_close(video_of(scene), video_of(run()[1]))


def test_conditions_are_cut_to_the_piece() -> None:
    class Condition(Look):
        @hookimpl
        def begin_window(self, window: Window) -> None:
            window["condition"] = torch.arange(7.0).view(1, 1, 7, 1, 1).expand(1, 1, 7, *window.latents.shape[3:])

        @hookimpl(specname="embed", trylast=True)
        def look(self, forward: Forward) -> None:
            assert forward.cut(forward["condition"]).unique().tolist() == sorted(set(forward.frame_index.tolist()))

    look = Condition()
    scene = Scene(frames=25)
    _, *denoising = units(steps=2)
    models = fake_models(dit=FakeDiT(condition_channels=1))
    fake_engine([scene, *denoising, SlidingWindow(size=3, stride=2)], models=models, observers=[look]).generate(
        request()
    )
    assert [frames for _, frames in look.calls[:3]] == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]


def test_the_overlap_is_crossed_over_linearly() -> None:
    spans = pieces(6, 4, 2)
    parts = [torch.full((1, 1, 4, 1, 1), value) for value in (0.0, 1.0)]
    assert blend(parts, spans, 2).flatten().tolist() == [0, 0, 0.25, 0.75, 1, 1]
    assert ramp(3, 0, rises=True, falls=True).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("total", "size", "stride"), [(1, 4, 3), (11, 6, 4), (11, 5, 5), (20, 8, 1)])
def test_pieces_cover_everything_once_or_more(total: int, size: int, stride: int) -> None:
    spans = pieces(total, size, stride)
    assert {frame for span in spans for frame in range(span.start, span.stop)} == set(range(total))
    assert all(span.stop - span.start <= size for span in spans)
    assert all(before.stop < after.stop for before, after in pairwise(spans))


def test_gaps_are_refused() -> None:
    with pytest.raises(ValidationError, match="stride 5 leaves gaps between pieces of 4 latent frames"):
        SlidingWindow(size=4, stride=5)
