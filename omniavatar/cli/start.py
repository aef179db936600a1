"""What `omni run` must know before it can parse its options: the configuration and the units, which bring options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omniavatar import original
from omniavatar.cli.console import saying_faults
from omniavatar.cli.ranks import spread
from omniavatar.config import (
    DEFAULT_CONFIG,
    RunConfig,
    find_config,
    merge_settings,
    model_entry,
    parse_config,
    read_yaml,
)
from omniavatar.distributed.world import World, place
from omniavatar.errors import InputError, nearest

if TYPE_CHECKING:
    from omniavatar.engine.plan import Catalog
    from omniavatar.engine.unit import PipelineUnit
    from omniavatar.plugins import Plugins


EARLY = (
    click.Option(["--units"], metavar="PLAN", help="plan expression, such as default+teacache(threshold=0.2)-lora"),
    click.Option(
        ["--config"], metavar="FILE", help="configuration, ours or the original's; or the name of a packaged one"
    ),
    click.Option(
        ["--hp", "--hparams", "-hp"], metavar="KEY=VALUE,...", help="settings in the original's words; they win"
    ),
    click.Option(
        ["--model", "models"],
        multiple=True,
        metavar="[ROLE=]PATH",
        help="model file, folder or pattern; repeatable; a role such as dit2 says which transformer it is or changes",
    ),
    click.Option(["--models-dir"], metavar="FOLDER", help="where relative model paths of the configuration start"),
    click.Option(
        ["--table", "tables"],
        multiple=True,
        metavar="FILE",
        help="further checkpoint table, such as omni calibrate writes; repeatable",
    ),
)
"""The options that decide which other options there are."""


@dataclass(frozen=True)
class Start:
    """The configuration with the early options laid over it, the units chosen with inline settings, and our rank."""

    config: RunConfig
    overrides: original.Overrides
    catalog: Catalog
    plugins: Plugins
    chosen: Mapping[str, dict[str, Any]]
    world: World

    @property
    def units(self) -> dict[str, type[PipelineUnit]]:
        """The classes of the chosen units, by name."""
        return {name: self.catalog.units[name] for name in self.chosen}

    def final(self, flags: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> RunConfig:
        """The configuration of the run. Weakest first: file, plan expression, command line, `--hp`."""
        changes = {
            **flags,
            **self.overrides.top,
            "units": "+".join(self.chosen),
            "settings": merge_settings(self.config.settings, self.chosen, settings, self.overrides.settings),
        }
        return parse_config({**dict(self.config), **changes}, "command line")


def early_options(
    arguments: list[str], normalize: Callable[[str], str], own: Sequence[click.Option] = EARLY
) -> dict[str, Any]:
    """The early options of a command among all arguments, with `help`, `quiet` and `verbose`."""
    flags = (click.Option(["--help"], is_flag=True), click.Option(["--quiet"], is_flag=True))
    gpus = click.Option(["--gpus"], type=int)
    params: list[click.Parameter] = [*own, *flags, gpus, click.Option(["-v", "--verbose"], count=True)]
    settings: dict[str, Any] = {
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
        "token_normalize_func": normalize,
    }
    scan = click.Command("scan", params=params, context_settings=settings)
    return dict(scan.make_context("scan", list(arguments), resilient_parsing=True).params)


def start(early: Mapping[str, Any]) -> Start:
    """Read the configuration, see that its files are there, and find the plugins."""
    config, overrides = configuration(early)
    if not early.get("help"):
        config.model_files()  # before torch is imported: this answer should not take seconds
    from omniavatar.engine.plan import parse
    from omniavatar.plugins import discover

    plugins = discover()
    with saying_faults(plugins):
        catalog = plugins.catalog()
    for name in config.settings:
        if name not in catalog.units:
            raise InputError(
                f"the configuration has settings for an unknown unit '{name}'{nearest(name, catalog.units)}"
            )
    world = place()
    ranks = max(world.size, overrides.top.get("gpus") or early.get("gpus") or config.gpus)
    chosen = overrides.apply(parse(config.units, catalog))
    guidance = {**config.settings.get("guidance-parallel", {}), **chosen.get("guidance-parallel", {})}
    chosen = spread(chosen, ranks, guidance.get("degree", 2))
    return Start(config, overrides, catalog, plugins, chosen, world)


def absolute(entry: dict[str, Any]) -> dict[str, Any]:
    """A model entry of the command line, whose path starts where the user is."""
    return {**entry, "path": str(Path(entry["path"]).absolute())}


def configuration(early: Mapping[str, Any]) -> tuple[RunConfig, original.Overrides]:
    """The configuration file with the early options laid over it, and what `--hp` will lay over everything."""
    hparams = original.parse_hparams(early.get("hp") or "")
    path = find_config(early.get("config") or DEFAULT_CONFIG)
    content = read_yaml(path)
    is_original = original.is_original(content)
    config = original.translate(content, hparams, path) if is_original else parse_config(content, path)
    overrides = original.overrides(content if is_original else {}, hparams)
    changes: dict[str, Any] = {key: early[key] for key in ("units", "models_dir") if early.get(key) is not None}
    if early.get("tables"):
        changes["tables"] = (*config.tables, *(str(Path(table).absolute()) for table in early["tables"]))
    if early.get("models"):
        kept = config.models if early.get("config") else ()
        changes["models"] = (*kept, *(absolute(model_entry(model)) for model in early["models"]))
    return (parse_config({**dict(config), **changes}, "command line") if changes else config), overrides
