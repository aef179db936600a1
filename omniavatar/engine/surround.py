"""Something around every hook of some units, whoever calls it: their times, or a note of what they do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omniavatar.engine.hooks import Hooks
    from omniavatar.engine.unit import PipelineUnit

Inside = Callable[[str, str], AbstractContextManager[None]]


@contextmanager
def surrounded(
    hooks: Hooks, units: Iterable[PipelineUnit], inside: Inside, only: Container[str] | None = None
) -> Iterator[None]:
    """For the time of a with-block, the hooks of these units, or `only` some of them, run in `inside(unit, hook)`.

    Of a wrapper, what stands before its yield and what stands behind it, but not the hooks that it wraps.
    """
    replaced = []
    try:
        for unit in units:
            for caller in hooks.manager.get_hookcallers(unit) or []:
                if only is not None and caller.name not in only:
                    continue
                for implementation in caller.get_hookimpls():
                    if implementation.plugin is unit:
                        replaced.append((implementation, implementation.function))
                        function = _around(implementation.function, unit.name, caller.name, inside)
                        implementation.function = function  # type: ignore[misc]
        yield
    finally:
        for implementation, function in replaced:
            implementation.function = function  # type: ignore[misc]


def _around(function: Callable[..., Any], unit: str, hook: str, inside: Inside) -> Callable[..., Any]:
    """A hook implementation that runs inside."""

    def plain(*arguments: Any) -> Any:
        with inside(unit, hook):
            return function(*arguments)

    def wrapper(*arguments: Any) -> Any:
        inner = function(*arguments)
        with inside(unit, hook):
            next(inner)
        try:
            result = yield
        except BaseException as error:
            resume, value = inner.throw, error
        else:
            resume, value = inner.send, result
        try:
            with inside(unit, hook):
                resume(value)
        except StopIteration as stop:
            return stop.value

    return wrapper if inspect.isgeneratorfunction(function) else plain
