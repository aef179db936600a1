"""Contexts around the hooks of units: which parts of a hook run in them, and for how long."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from omniavatar.engine.hooks import Hooks
from omniavatar.engine.surround import Around
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from tests.scenes import Scene, denoising_units, fake_engine, request


class Talker(PipelineUnit):
    """Writes down what its hooks do."""

    name = "talker"

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    @hookimpl
    def before_step(self) -> None:
        self.log.append("plain")

    @hookimpl(wrapper=True)
    def guide(self) -> Generator[None, Any, Any]:
        self.log.append("in front")
        try:
            result = yield
        except ValueError:
            self.log.append("caught")
            raise
        self.log.append("behind")
        return result

    @hookimpl
    def decode_latents(self) -> Iterator[str]:
        try:
            for part in ("one", "two"):
                self.log.append(part)
                yield part
        finally:
            self.log.append("closed")


class Answering(PipelineUnit):
    """What is wrapped."""

    name = "answering"

    def __init__(self, log: list[str], error: Exception | None = None) -> None:
        super().__init__()
        self.log = log
        self.error = error

    @hookimpl
    def guide(self) -> str:
        self.log.append("wrapped")
        if self.error is not None:
            raise self.error
        return "answer"


def around(log: list[str], name: str = "", hooks: Sequence[str] | None = None) -> Around:
    """Writes down when the talker is entered and left."""

    @contextmanager
    def inside(unit: str, hook: str) -> Iterator[None]:
        if unit == "talker":
            log.append(f"{name}(")
        try:
            yield
        finally:
            if unit == "talker":
                log.append(f"{name})")

    return Around(inside, hooks)


def made(error: Exception | None = None, hooks: Sequence[str] | None = None) -> tuple[Any, list[str]]:
    """Hooks of both units, and what they write down."""
    log: list[str] = []
    return Hooks([Talker(log), Answering(log, error)], around=[around(log, hooks=hooks)]), log


def test_a_plain_hook_runs_in_it() -> None:
    hooks, log = made()
    hooks.before_step(None)
    assert log == ["(", "plain", ")"]


def test_of_a_wrapper_both_sides_do_and_not_what_it_wraps() -> None:
    hooks, log = made()
    assert hooks.guide(None) == "answer"
    assert log == ["(", "in front", ")", "wrapped", "(", "behind", ")"]


def test_a_wrapper_meets_the_errors_of_what_it_wraps() -> None:
    hooks, log = made(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        hooks.guide(None)
    assert log == ["(", "in front", ")", "wrapped", "(", "caught", ")"]


def test_of_a_stream_the_making_of_each_part_does() -> None:
    hooks, log = made()
    for part in hooks.decode_latents(None):
        log.append(f"got {part}")
    assert log == ["(", ")", "(", "one", ")", "got one", "(", "two", ")", "got two", "(", "closed", ")"]


def test_a_stream_that_is_left_is_closed() -> None:
    hooks, log = made()
    stream = hooks.decode_latents(None)
    next(stream)
    stream.close()
    assert log[-1] == "closed"
    assert "two" not in log


def test_only_the_hooks_that_are_wanted() -> None:
    hooks, log = made(hooks=["before_step"])
    hooks.before_step(None)
    hooks.guide(None)
    assert log == ["(", "plain", ")", "in front", "wrapped", "behind"]


def test_the_first_is_the_outermost() -> None:
    log: list[str] = []
    hooks: Any = Hooks([Talker(log)], around=[around(log, "a"), around(log, "b")])
    hooks.before_step(None)
    assert log == ["a(", "b(", "plain", "b)", "a)"]


def test_an_engine_is_instrumented_for_what_is_started_meanwhile() -> None:
    log: list[str] = []

    class Stepping(PipelineUnit):
        name = "talker"

        @hookimpl
        def before_step(self) -> None:
            log.append("plain")

    engine = fake_engine([Stepping(), Scene(frames=5), *denoising_units(steps=1)])
    engine.generate(request())
    with engine.instrumented(around(log)):
        engine.generate(request())
    engine.generate(request())
    assert log == ["plain", "(", "plain", ")", "plain"]
