"""Scopes: what falls through, what is kept apart, and what is let go."""

from __future__ import annotations

import weakref

import pytest
from torch import nn

from omniavatar.engine.scopes import Branch, Forward, Job, Request, Scope, Step, Window
from omniavatar.engine.windows import Span
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl
from tests.scenes import Scene, denoising_units, fake_engine, request

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


@pytest.fixture
def job() -> Job:
    return Job(fake_engine([]), Request(height=16, width=16), {})


@pytest.fixture
def window(job: Job) -> Window:
    return Window(job, 0, SPAN, None)


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
    memories.append(Window(job, 1, SPAN, window).memory(first, [positive]))
    for index, memory in enumerate(memories):
        memory["x"] = index
    assert [memory["x"] for memory in memories] == [0, 1, 2, 3, 4]
    assert [window.memory(network, branches)["x"] for network, branches in groups] == [0, 1, 2, 3]
    window["of window"] = 7
    assert memories[0]["of window"] == 7


def test_only_the_window_before_is_kept_and_older_ones_go_at_once() -> None:
    """Freed by reference count alone: a cycle would hold a window's frames until Python happens to look for cycles."""
    watch = Watch(frames=25)
    fake_engine([watch, *denoising_units()]).generate(request())
    assert watch.alive[:4] == [[True], [True, True], [False, True, True], [False, False, True, True]]
    assert all(reference() is None for reference in watch.seen)


def test_the_length_and_the_size_must_come_from_somewhere() -> None:
    job = Job(fake_engine([]), Request(), {})
    with pytest.raises(InputError, match="give one with --seconds, or a sound"):
        _ = job.length
    with pytest.raises(InputError, match="give one with --size"):
        _ = job.size


def test_half_a_size_is_refused() -> None:
    with pytest.raises(InputError, match="the size is 16xNone; give both height and width, or neither"):
        Request(height=16)


@pytest.mark.parametrize(("seconds", "fps"), [(1.0, 0), (-1.0, 25), (float("nan"), 25)])
def test_numbers_that_make_no_video_are_refused(seconds: float, fps: int) -> None:
    with pytest.raises(InputError, match="; give "):
        Request(seconds=seconds, fps=fps)
