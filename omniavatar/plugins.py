"""Discovery: the built-in units and what installed packages bring through the entry-point group `omniavatar`.

A package that cannot be imported, or whose hooks fail, is reported in `Plugins.failures` and the rest works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from omniavatar import __version__, builtin
from omniavatar.hookspecs import PROJECT, Discovery

if TYPE_CHECKING:
    import click

    from omniavatar.engine.plan import Catalog


@dataclass(frozen=True)
class Failure:
    """A plugin that was left out, and why."""

    plugin: str
    reason: str


@dataclass(frozen=True)
class Description:
    """A plugin that works: its name, the version of its package, the hooks it implements."""

    name: str
    version: str
    hooks: tuple[str, ...]


@dataclass
class Plugins:
    """The plugin packages of one process or test, and what they bring."""

    manager: pluggy.PluginManager
    failures: list[Failure] = field(default_factory=list)

    def catalog(self) -> Catalog:
        """All units and presets. A name that a second package brings again is left out and reported."""
        from omniavatar.engine.plan import Catalog

        units: dict[str, Any] = {}
        presets: dict[str, str] = {}
        for plugin, classes in self._each("omni_units"):
            for unit_class in classes:
                self._add(plugin, "unit", unit_class.name, unit_class, units)
        for plugin, named in self._each("omni_presets"):
            for name, expression in named.items():
                self._add(plugin, "preset", name, expression, units if name in units else presets)
        return Catalog(units, presets)

    def checkpoint_tables(self) -> list[Path | Traversable]:
        """The checkpoint tables of all packages, the built-in ones first."""
        return [table for _, tables in self._each("omni_checkpoints") for table in tables]

    def add_commands(self, cli: click.Group) -> None:
        """Let every package add its commands."""
        for plugin, add in self._implementations("omni_commands"):
            self._guarded(plugin, partial(add, cli=cli))

    def describe(self) -> list[Description]:
        """The packages that work, in the order in which they are asked."""
        versions = {entry.name: entry.dist.version for entry in entry_points(group=PROJECT) if entry.dist is not None}
        return [
            Description(name, versions.get(name, __version__), self._hooks_of(plugin))
            for name, plugin in self.manager.list_name_plugin()
            if plugin is not None
        ]

    def _hooks_of(self, plugin: Any) -> tuple[str, ...]:
        callers = self.manager.get_hookcallers(plugin) or []
        return tuple(sorted(caller.name for caller in callers))

    def _implementations(self, hook: str) -> Iterable[tuple[str, Callable[..., Any]]]:
        """Each package's function for a hook, with the package's name, built-in first."""
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            yield implementation.plugin_name, implementation.function

    def _each(self, hook: str) -> Iterable[tuple[str, Any]]:
        """Each package's answer to a hook without arguments."""
        for plugin, function in self._implementations(hook):
            answer = self._guarded(plugin, function)
            if answer is not None:
                yield plugin, answer

    def _guarded(self, plugin: str, call: Callable[[], Any]) -> Any:
        """Run a package's code; what it raises is reported, not raised, except for our own."""
        try:
            return call()
        except Exception as error:
            if plugin == builtin.__name__:
                raise
            self._report(plugin, f"{type(error).__name__}: {error}")
            return None

    def _add(self, plugin: str, what: str, name: str, value: Any, table: dict[str, Any]) -> None:
        if name in table:
            self._report(plugin, f"{what} '{name}' exists already; it was left out")
        else:
            table[name] = value

    def _report(self, plugin: str, reason: str) -> None:
        failure = Failure(plugin, reason)
        if failure not in self.failures:
            self.failures.append(failure)


def discover(extra: Iterable[EntryPoint] = ()) -> Plugins:
    """The built-in package and every installed one."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Discovery)
    manager.register(builtin, name=builtin.__name__)
    plugins = Plugins(manager)
    for entry in [*entry_points(group=PROJECT), *extra]:
        _register(plugins, entry)
    return plugins


def _register(plugins: Plugins, entry: EntryPoint) -> None:
    """Import one entry point and check that its hooks fit the specification."""
    try:
        plugin = entry.load()
        plugins.manager.register(plugin, name=entry.name)
        plugins.manager.check_pending()
    except Exception as error:
        plugins.manager.unregister(name=entry.name)
        plugins.failures.append(Failure(entry.name, f"{type(error).__name__}: {error}".partition("\n")[0]))
