"""Who reads and writes which values of the scopes, and who asks for which model, while a video is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from omniavatar.engine.delegation import DelegatingModels
from omniavatar.engine.engine import Engine, Models
from omniavatar.engine.plan import Plan
from omniavatar.engine.scopes import Scope
from omniavatar.engine.surround import Around


@dataclass(frozen=True)
class Access:
    """A unit at a value or model, in one of its hooks."""

    unit: str
    hook: str
    name: str


class Watch:
    """Notes what units do, by the order in which their hooks run inside each other."""

    def __init__(self) -> None:
        self.reads: list[Access] = []
        self.writes: list[Access] = []
        self.models: list[Access] = []
        self._running: list[tuple[str, str]] = []
        self._is_inside_scope = False

    @contextmanager
    def watching(self, engine: Engine) -> Iterator[None]:
        """Note what the units of this engine do for the time of a with-block."""
        notes = {"__getitem__": self.reads, "__contains__": self.reads, "__setitem__": self.writes, "once": self.writes}
        with ExitStack() as stack:
            for method, accesses in notes.items():
                stack.enter_context(mock.patch.object(Scope, method, self._noting(method, accesses)))
            direct = property(self._values_of, self._set_values)
            stack.enter_context(mock.patch.object(Scope, "values", direct, create=True))
            stack.enter_context(engine.instrumented(Around(self._inside)))
            yield

    @contextmanager
    def _inside(self, unit: str, hook: str) -> Iterator[None]:
        self._running.append((unit, hook))
        try:
            yield
        finally:
            self._running.pop()

    def _note(self, notes: list[Access], name: str) -> None:
        """Put down who runs; nothing while the engine itself does."""
        if self._running:
            notes.append(Access(*self._running[-1], name))

    def note_direct(self, notes: list[Access], name: str) -> None:
        """Put down an access to `scope.values`, unless a method of scopes makes it, which is noted itself."""
        if not self._is_inside_scope:
            self._note(notes, name)

    def _values_of(self, scope: Scope) -> WatchedValues:
        return WatchedValues(self, vars(scope)["values"])

    def _set_values(self, scope: Scope, values: Mapping[str, Any]) -> None:
        vars(scope)["values"] = {}
        self._values_of(scope).update(values)

    @contextmanager
    def _inside_scope(self, is_inside: bool) -> Iterator[None]:
        before, self._is_inside_scope = self._is_inside_scope, is_inside
        try:
            yield
        finally:
            self._is_inside_scope = before

    def note_model(self, role: str) -> None:
        """Put down that a unit asks for a model."""
        self._note(self.models, role)

    def _noting(self, method: str, notes: list[Access]) -> Callable[..., Any]:
        """A method of scopes, with a note."""
        original = getattr(Scope, method)

        def noting(scope: Scope, name: str, *value: Any) -> Any:
            self._note(notes, name)
            with self._inside_scope(True):
                return original(scope, name, *value)

        def once(scope: Scope, name: str, make: Callable[[], Any]) -> Any:
            def making() -> Any:
                with self._inside_scope(False):
                    return make()

            return noting(scope, name, making)

        return once if method == "once" else noting


class WatchedValues(MutableMapping[str, Any]):
    """The values of a scope for those who go past its methods, with a note of who reads and changes which."""

    def __init__(self, watch: Watch, values: dict[str, Any]) -> None:
        self._watch, self._values = watch, values

    def __getitem__(self, name: str) -> Any:
        self._watch.note_direct(self._watch.reads, name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        self._watch.note_direct(self._watch.reads, str(name))
        return name in self._values

    def __setitem__(self, name: str, value: Any) -> None:
        self._watch.note_direct(self._watch.writes, name)
        self._values[name] = value

    def __delitem__(self, name: str) -> None:
        self._watch.note_direct(self._watch.writes, name)
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class WatchedModels(DelegatingModels[Models]):
    """The models of an engine, with a note of who asks for the numbers or files of a role."""

    def __init__(self, watch: Watch, models: Models) -> None:
        super().__init__(models)
        self._watch = watch

    def config(self, role: str) -> Mapping[str, Any]:
        self._watch.note_model(role)
        return super().config(role)

    def beside(self, role: str, path: Path) -> Path:
        self._watch.note_model(role)
        return super().beside(role, path)


class WatchedEngine(Engine):
    """An engine that notes which unit asks for which model."""

    def __init__(self, watch: Watch, plan: Plan, models: Models, **options: Any) -> None:
        self._watch = watch
        super().__init__(plan, WatchedModels(watch, models), **options)

    def model(self, role: str) -> Any:
        self._watch.note_model(role)
        return super().model(role)


def frozen(value: Any, inside: frozenset[int] = frozenset()) -> Any:
    """A picture of a value that does not change with it and can be compared."""
    if id(value) in inside:
        return "itself"
    inner: Any = repr(value)
    inside = inside | {id(value)}
    if isinstance(value, torch.Tensor):
        inner = value.shape, value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, nn.Module):
        inner = frozen(dict(value.state_dict()), inside)
    elif isinstance(value, Mapping):
        inner = [(frozen(key, inside), frozen(item, inside)) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        inner = [frozen(item, inside) for item in value]
    elif isinstance(value, set | frozenset):
        inner = sorted(map(repr, value))
    elif hasattr(value, "__dict__") and not callable(value):
        inner = frozen(vars(value), inside)
    return type(value).__name__, inner
