"""Discovery: the built-in units and what installed packages bring through the entry-point group `omniavatar`.

What is broken in a package (it cannot be imported, a hook fails, a unit does not fit, a table cannot be read) is left
out and reported in `Plugins.failures`; the rest works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from omniavatar import __version__, builtin
from omniavatar.errors import CheckpointError, Ended, PlanError, PluginError, shown
from omniavatar.hookspecs import PROJECT, Discovery
from omniavatar.sdk import API

if TYPE_CHECKING:
    import click

    from omniavatar.checkpoints import Registry
    from omniavatar.checkpoints.formats import Format, Formats
    from omniavatar.engine.plan import Catalog
    from omniavatar.metrics import Metric
    from omniavatar.training.data.generated import ClipGenerator

OWN_PACKAGE = "omniavatar"
API_ATTRIBUTE = "OMNIAVATAR_API"
"""Where the hook module of a package says for which number of `omniavatar.sdk` it is written."""
LONGEST = 500
"""Letters of an error that are shown."""


@dataclass(frozen=True)
class Failure:
    """Something that was left out, of which plugin, and why."""

    plugin: str
    reason: str


@dataclass(frozen=True)
class Description:
    """A plugin: its name, package, version and place, the hooks it implements, what of it was left out and why.

    units, presets: the names of those that it brings, once `Plugins.catalog` has been asked.
    api: the number of `omniavatar.sdk` that it says it is written for, if it says one.
    """

    name: str
    package: str
    version: str
    source: str
    hooks: tuple[str, ...]
    units: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    is_active: bool = True
    api: int | None = None


@dataclass
class Plugins:
    """The plugin packages of one process or test, and what they bring."""

    manager: pluggy.PluginManager
    entries: dict[str, EntryPoint] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    owners: dict[str, dict[str, str]] = field(default_factory=lambda: {"unit": {}, "preset": {}})
    """Which plugin each unit and each preset is from, once `catalog` has been asked."""

    def catalog(self, extra_units: Iterable[Any] = ()) -> Catalog:
        """All units and presets. A unit that does not fit, or a name that a second package brings, is left out.

        extra_units: classes of the caller's own; PlanError is raised if one of these does not fit.
        """
        from omniavatar.engine.plan import Catalog

        units: dict[str, Any] = {}
        presets: dict[str, str] = {}
        for plugin, classes in self._each("omni_units", list):
            for unit_class in classes:
                self._guarded(plugin, partial(self._add_unit, plugin, unit_class, units))
        for plugin, named in self._each("omni_presets", presets_in):
            for name, expression in named.items():
                self._add(plugin, "preset", name, expression, units if name in units else presets)
        for unit_class in extra_units:
            fault = unit_fault(unit_class)
            if fault:
                raise PlanError(f"extra_units: {fault}")
            if unit_class.name in units or unit_class.name in presets:
                what = "unit" if unit_class.name in units else "preset"
                raise PlanError(f"extra_units: a {what} '{unit_class.name}' exists already; give yours another name")
            units[unit_class.name] = unit_class
        return Catalog(units, presets)

    def registry(self, tables: Iterable[Path] = ()) -> Registry:
        """All known checkpoints. A table that cannot be read, or has a row that is known already, is left out.

        tables: the user's own, the last to be read; a faulty one of these is an error, and so is one that names code
        which no installed package names.
        """
        from omniavatar.checkpoints import Registry
        from omniavatar.checkpoints.tables import check_networks, network_modules

        owners = {table: plugin for plugin, tables in self._each("omni_checkpoints", tables_in) for table in tables}

        def leave_out(table: Path | Traversable, error: CheckpointError) -> None:
            if owners.get(table, builtin.__name__) == builtin.__name__:
                raise error
            self._report(owners[table], f"{error}; it was left out")

        formats = self.formats()
        registry, tables = Registry(owners, leave_out, formats), list(tables)
        if not tables:
            return registry
        modules = network_modules(registry.rows)
        for table in tables:
            check_networks(table, modules)
        return Registry([*owners, *tables], leave_out, formats)

    def checkpoint_tables(self) -> list[Path | Traversable]:
        """The checkpoint tables of all packages, the built-in ones first."""
        return [table for _, tables in self._each("omni_checkpoints", tables_in) for table in tables]

    def formats(self) -> Formats:
        """All weight formats, the built-in ones first. One that does not fit, or whose name or ending is taken by
        another, is left out.
        """
        from omniavatar.checkpoints.formats import Formats, format_fault

        found: list[Format] = []
        for plugin, formats in self._each("omni_formats", list):
            for one in formats:
                fault = format_fault(one)
                same = next((other for other in found if not fault and clash(one, other)), None)
                if same is not None:
                    fault = f"format '{one.name}' has a name or an ending of '{same.name}', which exists already"
                if fault:
                    self._report(plugin, f"{fault}; it was left out")
                else:
                    found.append(one)
        return Formats(found)

    def metrics(self) -> dict[str, list[Metric]]:
        """What packages measure of made videos, by package. One that does not fit, or whose name is taken, is left
        out.
        """
        from omniavatar.metrics import metric_fault

        found: dict[str, list[Metric]] = {}
        for plugin, metrics in self._each("omni_metrics", list):
            for metric in metrics:
                fault = metric_fault(metric, chain.from_iterable(found.values()))
                if fault:
                    self._report(plugin, f"{fault}; it was left out")
                else:
                    found.setdefault(self.package_of(plugin), []).append(metric)
        return found

    def clip_generators(self) -> dict[str, type[ClipGenerator]]:
        """What makes clips, by name. One that does not fit, or whose name is taken, is left out."""
        from omniavatar.training.data.generated import generator_fault

        found: dict[str, type[ClipGenerator]] = {}
        for plugin, generators in self._each("omni_clips", list):
            for generator in generators:
                fault = generator_fault(generator)
                if not fault and generator.name in found:
                    fault = f"clip generator '{generator.name}' exists already"
                if fault:
                    self._report(plugin, f"{fault}; it was left out")
                else:
                    found[generator.name] = generator
        return found

    def add_commands(self, cli: click.Group) -> None:
        """Let every package add its commands. One whose name is taken is left out."""
        import click

        for plugin, add in self._implementations("omni_commands"):
            brought = click.Group(cli.name)
            self._guarded(plugin, partial(add, cli=brought))
            for name, command in brought.commands.items():
                if not isinstance(command, click.Command):
                    self._report(plugin, f"command '{name}' is {command!r} and no click.Command; it was left out")
                elif name in cli.list_commands(click.Context(cli)):
                    self._report(plugin, f"command '{name}' exists already; it was left out")
                else:
                    cli.add_command(command, name)

    def describe(self) -> list[Description]:
        """The packages: those that work in the order in which they are asked, then the others."""
        own = Description(
            name=builtin.__name__,
            package=OWN_PACKAGE,
            version=__version__,
            source=str(Path(builtin.__file__).parent),
            hooks=self.hooks_of(builtin),
            units=self._brought("unit", builtin.__name__),
            presets=self._brought("preset", builtin.__name__),
            api=API,
        )
        found = [self._described(name, entry) for name, entry in self.entries.items()]
        return [own, *sorted(found, key=lambda description: not description.is_active)]

    def _described(self, name: str, entry: EntryPoint) -> Description:
        failures = [failure for failure in self.failures if failure.plugin == name]
        plugin = self.manager.get_plugin(name)
        return Description(
            name=name,
            package=self.package_of(name),
            version=entry.dist.version if entry.dist is not None else "",
            source=place_of(plugin, entry),
            hooks=self.hooks_of(plugin),
            units=self._brought("unit", name),
            presets=self._brought("preset", name),
            faults=tuple(failure.reason for failure in failures),
            is_active=plugin is not None,
            api=getattr(plugin, API_ATTRIBUTE, None),
        )

    def package_of(self, plugin: str) -> str:
        """The installed package that a plugin is from, as pip calls it."""
        if plugin == builtin.__name__:
            return OWN_PACKAGE
        entry = self.entries.get(plugin)
        return entry.dist.name if entry is not None and entry.dist is not None else plugin

    def _brought(self, what: str, plugin: str) -> tuple[str, ...]:
        """The names of the units or presets that a plugin brings."""
        return tuple(name for name, owner in self.owners[what].items() if owner == plugin)

    def hooks_of(self, plugin: Any) -> tuple[str, ...]:
        """The names of the hooks that a plugin implements."""
        callers = (self.manager.get_hookcallers(plugin) if plugin is not None else None) or []
        return tuple(sorted(caller.name for caller in callers))

    def _implementations(self, hook: str) -> Iterable[tuple[str, Callable[..., Any]]]:
        """Each package's function for a hook, with the package's name, built-in first."""
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            yield implementation.plugin_name, implementation.function

    def _each(self, hook: str, kind: Callable[[Any], Any]) -> Iterable[tuple[str, Any]]:
        """Each package's answer to a hook without arguments, as a list or a dict."""

        def answer_of(function: Callable[[], Any]) -> Any:
            return kind(function())

        for plugin, function in self._implementations(hook):
            answer = self._guarded(plugin, partial(answer_of, function))
            if answer is not None:
                yield plugin, answer

    def _guarded(self, plugin: str, call: Callable[[], Any]) -> Any:
        """Run a package's code; what it raises is reported, not raised, except for our own."""
        try:
            return call()
        except BaseException as error:
            if plugin == builtin.__name__ or not is_fault(error):
                raise
            self._report(plugin, explained(error))
            return None

    def _add_unit(self, plugin: str, unit_class: Any, units: dict[str, Any]) -> None:
        fault = unit_fault(unit_class)
        if fault:
            self._report(plugin, f"{fault}; it was left out")
        else:
            self._add(plugin, "unit", unit_class.name, unit_class, units)

    def _add(self, plugin: str, what: str, name: str, value: Any, table: dict[str, Any]) -> None:
        if name in table:
            self._report(plugin, f"{what} '{name}' exists already; it was left out")
        else:
            table[name] = value
            self.owners[what][name] = plugin

    def _report(self, plugin: str, reason: str) -> None:
        failure = Failure(plugin, reason)
        if failure not in self.failures:
            self.failures.append(failure)


def unit_fault(unit_class: Any) -> str:
    """Why a class is not a unit that the engine could run, in one line; nothing if it is one."""
    from omniavatar.engine.hooks import hook_faults
    from omniavatar.engine.plan import NAME
    from omniavatar.engine.unit import PipelineUnit, declaration_faults

    if not (isinstance(unit_class, type) and issubclass(unit_class, PipelineUnit)):
        return f"{unit_class!r} is not a PipelineUnit"
    name = getattr(unit_class, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"unit {unit_class.__name__} has no name for plan expressions, but {name!r}"
    faults = chain(declaration_faults(unit_class), hook_faults(unit_class))
    return next((f"unit '{name}': {fault}" for fault in faults), "")


def clash(one: Format, other: Format) -> bool:
    """Whether two weight formats have the same name or claim the same ending."""
    return one.name == other.name or not set(one.suffixes).isdisjoint(other.suffixes)


def check_api(plugin: Any) -> None:
    """Raise PluginError for a plugin that is written for another number of `omniavatar.sdk`; without one it is this."""
    number = getattr(plugin, API_ATTRIBUTE, API)
    if not isinstance(number, int) or isinstance(number, bool):
        raise PluginError(f"its {API_ATTRIBUTE} is {shown(number)} and not a number such as {API}")
    if number != API:
        remedy = "upgrade omniavatar, or install an older version of it" if number > API else "upgrade it"
        raise PluginError(f"it is written for API {number}, and this omniavatar has API {API}; {remedy}")


def check_marks(plugin: Any, hooks: Sequence[str]) -> None:
    """Raise PluginError for a hook that would never be called, and for a plugin without any."""
    known = [name for name, spec in vars(Discovery).items() if hasattr(spec, f"{PROJECT}_spec")]
    for name in known:
        if name not in hooks and callable(getattr(plugin, name, None)):
            raise PluginError(f"its {name} is not marked with @hookimpl")
    if not hooks:
        raise PluginError(f"it has none of the hooks {', '.join(known)}")


def presets_in(answer: Any) -> dict[str, str]:
    """What `omni_presets` gives. Raises TypeError if that is no mapping of names to plan expressions."""
    from omniavatar.engine.plan import NAME

    if not isinstance(answer, Mapping):
        raise TypeError(f"omni_presets gives {answer!r} and no plan expressions by name")
    for name, expression in answer.items():
        if not (isinstance(name, str) and NAME.fullmatch(name) and isinstance(expression, str)):
            raise TypeError(f"omni_presets gives {name!r}: {expression!r}, which is no name and plan expression")
    return dict(answer)


def tables_in(answer: Any) -> list[Path | Traversable]:
    """What `omni_checkpoints` gives. Raises TypeError if that is no list of paths."""
    if not isinstance(answer, list | tuple) or not all(isinstance(table, Traversable) for table in answer):
        raise TypeError(f"omni_checkpoints gives {answer!r} and no list of pathlib.Path or of files() of importlib")
    return list(answer)


def place_of(plugin: Any, entry: EntryPoint) -> str:
    """The folder of a plugin's module or, if that cannot be imported, where its package is installed."""
    file = getattr(plugin, "__file__", None)
    if file is not None:
        return str(Path(file).parent)
    return str(entry.dist.locate_file("")) if entry.dist is not None else ""


def is_fault(error: BaseException) -> bool:
    """Whether a package's code is to blame, which may also call `exit`; it is not for Ctrl-C and other signals."""
    return not isinstance(error, KeyboardInterrupt | Ended)


def explained(error: BaseException) -> str:
    """An error in one line of bounded length."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


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
    name, manager = entry.name, plugins.manager
    if name in plugins.entries and entry.dist is not None:
        name = f"{name} ({entry.dist.name})"
    plugins.entries[name] = entry
    try:
        plugin = entry.load()
        check_api(plugin)
        manager.register(plugin, name=name)
        manager.check_pending()
        check_marks(plugin, plugins.hooks_of(plugin))
    except BaseException as error:
        if not is_fault(error):
            raise
        if manager.has_plugin(name):
            manager.unregister(name=name)
        plugins.failures.append(Failure(name, explained(error)))
