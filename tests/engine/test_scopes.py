"""Scopes: what falls through, what is kept apart, and what is let go."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from omniavatar.distributed.groups import Group
from omniavatar.distributed.sharding import Sharding
from omniavatar.engine.scopes import Branch, Forward, Job, Previous, Request, Scope, Step, Window
from omniavatar.engine.windows import Span
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl
from tests.scenes import Scene, bare_job, denoising_units, fake_engine, request

SPAN = Span(0, 9, 0, 0, 9)


class Watch(Scene):
    """Notes at every window which ones still live, without keeping them alive."""

    def __init__(self, frames: int) -> None:
        super().__init__(frames)
        self.seen: list[weakref.ref[Window]] = []
        self.alive: list[list[bool]] = []

    @hookimpl
    def begin_window(self, window: Window) -> None:
        self.seen.append(weakref.ref(window))
        self.alive.append([reference() is not None for reference in self.seen])

    @hookimpl
    def end_window(self, window: Window) -> None:
        """Without the recorder, which keeps steps."""


@pytest.fixture
def job() -> Job:
    return bare_job()


@pytest.fixture
def window(job: Job) -> Window:
    return Window(job, 0, SPAN)


def test_reading_falls_through_and_writing_stays(job: Job, window: Window) -> None:
    step = Step(window, 0, 1000.0, 1.0, 0.0)
    positive = window.branch("positive")
    forward = Forward(step, [positive])
    job["of job"], window["of window"], positive["of branch"] = 1, 2, 3
    assert (forward["of job"], forward["of window"], forward["of branch"]) == (1, 2, 3)
    assert (step["of job"], step["of window"]) == (1, 2)
    assert "of branch" not in step
    forward["of job"] = 10
    assert (forward["of job"], job["of job"]) == (10, 1)
    assert step.get("of nobody") is None
    assert step.get("of job", 5) == 1


def test_a_missing_value_is_named_with_what_there_is(window: Window) -> None:
    window.job["here"], window["there"] = 1, 2
    with pytest.raises(KeyError, match=r"no unit has stored 'this' yet; visible: here, there"):
        window["this"]


def test_once_makes_a_value_once_and_does_not_take_an_outer_one() -> None:
    outer = Scope()
    inner, made = Scope(outer), []
    outer["x"] = "outer"

    def make() -> str:
        made.append(1)
        return "inner"

    assert inner.once("x", make) == inner.once("x", make) == "inner"
    assert (made, outer["x"]) == ([1], "outer")


def test_a_false_value_is_a_value(window: Window) -> None:
    window["nothing"] = None
    assert "nothing" in window
    assert window.get("nothing", 5) is None
    assert window.once("nothing", lambda: 5) is None


def test_branches_are_kept_apart(window: Window) -> None:
    positive, negative = window.branch("positive"), window.branch("negative", drops=[Branch.ALL])
    positive["x"] = 1
    assert "x" not in negative
    assert window.branch("positive") is positive
    assert not positive.drops("text")
    assert negative.drops("text")
    with pytest.raises(ValueError, match="branch 'positive' drops \\[\\] and was asked for with \\['text'\\]"):
        window.branch("positive", drops=["text"])
    silent = window.branch("silent", drops=["audio"])
    assert silent.drops("audio")
    assert not silent.drops("text")


def test_a_merged_call_sees_the_window_not_one_branch(window: Window) -> None:
    branches = [window.branch("positive"), window.branch("negative")]
    branches[0]["x"] = 1
    forward = Forward(Step(window, 0, 1000.0, 1.0, 0.0), branches)
    assert "x" not in forward


def test_memory_is_one_per_window_network_and_branches(job: Job, window: Window) -> None:
    first, second = nn.Identity(), nn.Identity()
    positive, negative = window.branch("positive"), window.branch("negative")
    groups = [(first, [positive]), (first, [negative]), (first, [positive, negative]), (second, [positive])]
    memories = [window.memory(network, branches) for network, branches in groups]
    memories.append(Window(job, 1, SPAN, Previous(job, 0, SPAN, {})).memory(first, [positive]))
    for index, memory in enumerate(memories):
        memory["x"] = index
    assert [memory["x"] for memory in memories] == [0, 1, 2, 3, 4]
    assert [window.memory(network, branches)["x"] for network, branches in groups] == [0, 1, 2, 3]
    window["of window"] = 7
    assert memories[0]["of window"] == 7


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_tokens_of_latent_frames_among_those_of_a_rank(window: Window, ranks: int) -> None:
    """All ranks together have every token of every frame, and count the frames alike."""
    whole = torch.tensor([-1, 0, 0, 0, 1, 1, 1, 2, 2, 2, -1])
    found: dict[int, set[int]] = {}
    for rank in range(ranks):
        forward = Forward(Step(window, 0, 1000.0, 1.0, 0.0), [window.branch(f"rank {rank}")])
        sharding = Sharding(Group(rank, ranks), len(whole))
        forward.frame_index = sharding.shard(whole, dim=0, fill=-1)
        here = forward.frame_tokens(first=1)
        if here is None:
            assert (forward.frame_index < 1).all()
            continue
        for frame, places in zip(here.frames.tolist(), here.tokens.tolist(), strict=True):
            found.setdefault(frame, set()).update(place + rank * sharding.shard_length for place in places)
    assert found == {0: {4, 5, 6}, 1: {7, 8, 9}}


def test_only_the_window_before_is_kept_and_older_ones_go_at_once() -> None:
    """Freed by reference count alone: a cycle would hold a window's frames until Python happens to look for cycles."""
    watch = Watch(frames=25)
    fake_engine([watch, *denoising_units()]).generate(request())
    assert watch.alive[:4] == [[True], [True, True], [False, True, True], [False, False, True, True]]
    assert all(reference() is None for reference in watch.seen)


def test_the_length_and_the_size_must_come_from_somewhere() -> None:
    job = bare_job(asked=Request())
    with pytest.raises(InputError, match="no audio is given; give one, or seconds for a silent video"):
        _ = job.length
    with pytest.raises(InputError, match="the size of the video is unknown; give its height and width"):
        _ = job.size


def test_half_a_size_is_refused() -> None:
    with pytest.raises(InputError, match="the height is 16 and the width None; give both, or neither"):
        Request(height=16)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"fps": 0}, "the video has 0 frames per second; give a whole number from 1 to 1000"),
        ({"fps": 1001}, "the video has 1001 frames per second; give a whole number from 1 to 1000"),
        ({"fps": 23.976}, "the video has 23.976 frames per second; give a whole number from 1 to 1000"),
        ({"seconds": 0}, "the video is 0 seconds long; give more than 0"),
        ({"seconds": -1.0}, "the video is -1.0 seconds long; give more than 0"),
        ({"seconds": float("nan")}, "the video is nan seconds long; give more than 0"),
        ({"seconds": float("inf")}, "the video is inf seconds long; give more than 0"),
        ({"seconds": "3"}, "the video is '3' seconds long; give more than 0"),
        ({"height": 0, "width": 16}, "the height is 0; give a whole number of pixels"),
        ({"height": 16, "width": 16.5}, "the width is 16.5; give a whole number of pixels"),
        ({"height": 16, "width": True}, "the width is True; give a whole number of pixels"),
        ({"seed": -2}, "the seed is -2; give a whole number from 0 to 2**63 - 1, or -1 to draw one"),
        ({"seed": 2**63}, f"the seed is {2**63}; give a whole number from 0 to 2**63 - 1, or -1 to draw one"),
        ({"seed": "1"}, "the seed is '1'; give a whole number from 0 to 2**63 - 1, or -1 to draw one"),
        ({"inputs": "me.png"}, "the inputs are a mapping of names to values, not str"),
    ],
)
def test_what_makes_no_video_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        Request(**asked)
    assert str(caught.value) == said


@pytest.mark.parametrize("seed", [None, -1])
def test_a_seed_can_be_drawn_and_is_told(seed: int | None) -> None:
    drawn = {Request(seed=seed).seed for _ in range(3)}
    assert len(drawn) == 3
    assert Request(seed=2**63 - 1).seed == 2**63 - 1


# The window before


def test_of_the_window_before_only_what_a_unit_reads_is_there(job: Job) -> None:
    job["of job"] = 1
    previous = Previous(job, 0, SPAN, {"frames": torch.ones(1), "border_frame": torch.zeros(1)})
    assert previous["frames"].equal(torch.ones(1))
    assert previous["of job"] == 1
    assert "condition" not in previous
    with pytest.raises(KeyError) as caught:
        previous["condition"]
    assert caught.value.args[0] == (
        "the window before has not kept 'condition'; a unit that reads it says so with needs or uses: "
        "'previous.condition'; kept: border_frame, frames"
    )


def test_what_is_read_of_the_window_before_comes_to_the_device(job: Job) -> None:
    job.engine.device = torch.device("meta")
    previous = Previous(job, 0, SPAN, {"frames": torch.ones(1), "count": 3})
    assert previous["frames"].device.type == "meta"
    assert previous.get("frames").is_meta  # type: ignore[union-attr]
    assert previous["count"] == 3
    assert previous.values["frames"].device.type == "cpu"


def test_a_window_is_emptied_when_it_is_closed(job: Job) -> None:
    """Whoever still holds it, or something of it, holds nothing large."""
    window = Window(job, 1, SPAN, Previous(job, 0, SPAN, {"frames": torch.ones(1)}))
    window.latents = torch.ones(1, 4, 3, 2, 2)
    branch = window.branch("positive")
    memory = window.memory(nn.Identity(), [branch])
    for scope in (window, branch, memory):
        scope["x"] = torch.ones(1)
    window.steps = [Step(window, index, 1000.0, 1.0, 0.0) for index in range(3)]
    window.close()
    assert [scope.values for scope in (window, branch, memory)] == [{}, {}, {}]
    assert window.latents.numel() == 0
    assert (window.previous, window.steps, window.step_count) == (None, (), 3)
