"""Something around every hook of a plan's units, whoever calls it: their times, or a note of what they do.

with engine.instrumented(Around(clock.inside)):
    engine.generate(request)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omniavatar.hookspecs import PROJECT

if TYPE_CHECKING:
    from omniavatar.engine.unit import PipelineUnit


@dataclass(frozen=True)
class Around:
    """`inside(unit, hook)` is a context in which each hook of each unit runs, or only those of `hooks`.

    Of a wrapper, what stands before its yield and what stands behind it, but not the hooks that it wraps. Of a hook
    that gives its results one by one, the making of each.
    """

    inside: Callable[[str, str], AbstractContextManager[None]]
    hooks: Container[str] | None = None


class Surrounded:
    """Stands for a unit whose hooks run in contexts."""

    def __init__(self, unit: PipelineUnit) -> None:
        self.unit = unit


def surrounded(unit: PipelineUnit, around: Sequence[Around]) -> Any:
    """What to register for a unit: itself if nothing is around its hooks."""
    stand_in = Surrounded(unit)
    is_needed = False
    for attribute in dir(type(unit)):
        options = getattr(getattr(type(unit), attribute), f"{PROJECT}_impl", None)
        if options is None:
            continue
        function, hook = getattr(unit, attribute), options["specname"] or attribute
        wanted = [each.inside for each in around if each.hooks is None or hook in each.hooks]
        if wanted:
            is_needed = True
            function = _inside(function, unit.name, hook, wanted)
            setattr(function, f"{PROJECT}_impl", options)
        setattr(stand_in, attribute, function)
    return stand_in if is_needed else unit


def _inside(
    function: Callable[..., Any], unit: str, hook: str, wanted: Sequence[Callable[..., AbstractContextManager[None]]]
) -> Callable[..., Any]:
    """A hook implementation that runs in the contexts."""

    @contextmanager
    def inside() -> Iterator[None]:
        with ExitStack() as stack:
            for context in wanted:
                stack.enter_context(context(unit, hook))
            yield

    @functools.wraps(function)
    def plain(*arguments: Any) -> Any:
        with inside():
            result = function(*arguments)
        return _each_inside(result, inside) if inspect.isgenerator(result) else result

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        inner = function(*arguments)
        with inside():
            next(inner)
        try:
            result = yield
        except BaseException as error:
            resume, value = inner.throw, error
        else:
            resume, value = inner.send, result
        with inside():
            try:
                resume(value)
            except StopIteration as stop:
                result = stop.value
            else:
                inner.close()
                raise RuntimeError(f"the hook {hook} of '{unit}' is a wrapper with a second yield")
        return result

    return wrapper if inspect.isgeneratorfunction(function) and is_wrapper(function) else plain


def is_wrapper(function: Callable[..., Any]) -> bool:
    """Whether a hook implementation is marked as a wrapper."""
    options = getattr(function, f"{PROJECT}_impl")
    return bool(options["wrapper"] or options["hookwrapper"])


def _each_inside(
    results: Generator[Any, Any, Any], inside: Callable[[], AbstractContextManager[None]]
) -> Iterator[Any]:
    """The results of a generator, each made in the contexts."""
    try:
        while True:
            with inside():
                try:
                    result = next(results)
                except StopIteration:
                    return
            yield result
            del result
    finally:
        results.close()
