"""What `omni run` must know before it can parse its options: the configuration and the units, which bring options."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from omniavatar import original
from omniavatar.cli.console import saying_faults
from omniavatar.cli.fields import check_values
from omniavatar.config import DEFAULT_CONFIG, RANDOM, RunConfig, parse_config
from omniavatar.distributed.world import World, place
from omniavatar.engine.settings import Chosen, Layer, explicit_layer, file_layer
from omniavatar.errors import InputError
from omniavatar.locating import located
from omniavatar.opening import FinalConfig, configured, name_of, spread

if TYPE_CHECKING:
    from omniavatar.engine.plan import Catalog
    from omniavatar.engine.unit import PipelineUnit
    from omniavatar.plugins import Plugins

log = logging.getLogger(__name__)

EARLY = (
    click.Option(
        ["--units"],
        metavar="PLAN",
        help="features to run: +teacache-lora changes what the configuration has, default+teacache replaces it; "
        "omni units list says what there is",
    ),
    click.Option(
        ["--config"], metavar="FILE", help="configuration, ours or the original's; or the name of a packaged one"
    ),
    click.Option(
        ["--hp", "--hparams", "-hp"],
        metavar="KEY=VALUE,...",
        help="overrides by the original OmniAvatar's names: num_steps=25,guidance_scale=4.5",
    ),
    click.Option(
        ["--model", "models"],
        multiple=True,
        metavar="[ROLE=]PATH",
        help="model file, folder or pattern; repeatable; a role such as dit2 says which transformer it is or changes",
    ),
    click.Option(
        ["--lora", "loras"],
        multiple=True,
        metavar="[ROLE=]FILE[=STRENGTH]",
        help="LoRA file beside all models, of strength 1 or that given; repeatable; by ranges of the steps: "
        "FILE=[[0,0.5,1],[0.5,1,0.3]]",
    ),
    click.Option(["--models-dir"], metavar="FOLDER", help="where relative model paths of the configuration start"),
    click.Option(
        ["--models", "search"],
        multiple=True,
        metavar="FOLDER",
        help="search this folder for the models: ComfyUI's, a Hugging Face cache, any other; repeatable",
    ),
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
    """The configuration with the early options laid over it, the units chosen with inline settings, and our rank.

    file: the settings of the configuration file.
    """

    config: RunConfig
    overrides: original.Overrides
    catalog: Catalog
    plugins: Plugins
    chosen: Chosen
    file: Layer
    world: World

    @property
    def units(self) -> dict[str, type[PipelineUnit]]:
        """The classes of the chosen units, by name."""
        return {name: self.catalog.units[name] for name in self.chosen}

    def is_built_in(self, named: str | None) -> bool:
        """Whether the models are those of the built-in avatar. named: the configuration that the user has named."""
        return not named or DEFAULT_CONFIG in (named, self.config.base)

    def final(self, flags: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> FinalConfig:
        """The configuration of the run, with the options and `--hp` laid over it; a random seed is drawn and told."""
        check_values(RunConfig, flags, {name: f"--{name}" for name in flags})
        top = dict(self.overrides.top)
        if top.get("seed") in (RANDOM, "random") and "seed" in flags:
            del top["seed"]  # ranks that were started with a drawn seed get it by --seed
        config = parse_config({**dict(self.config), **flags, **top}, "command line")
        if config.seed == RANDOM:
            config = config.model_copy(update={"seed": self.drawn_seed()})
        layers = (self.file, explicit_layer(settings), self.overrides.layer)
        return FinalConfig(**dict(config), chosen=self.chosen, layers=layers)

    def drawn_seed(self) -> int:
        """A seed that nobody has chosen. Raises InputError on one of several ranks, which would each draw another."""
        if self.world.size > 1:
            raise InputError(f"each of {self.world.size} ranks would draw another seed; give one with --seed NUMBER")
        seed = secrets.randbelow(2**32)
        log.warning("the seed is %d", seed)
        return seed


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
        config = located(
            config, name=early.get("config") or ""
        )  # before torch is imported: this answer should not take seconds
    from omniavatar.engine.plan import check_names, choose, resolve
    from omniavatar.plugins import discover

    plugins = discover()
    with saying_faults(plugins):
        catalog = plugins.catalog()
    file = file_layer(name_of(early.get("config")), config.settings)
    check_names(file, catalog)
    world = place()
    ranks = max(world.size, overrides.top.get("gpus") or early.get("gpus") or config.gpus)
    chosen: Chosen = overrides.apply(choose(config.units, catalog))
    chosen = spread(chosen, ranks, resolve(chosen, catalog, file, overrides.layer))
    return Start(config, overrides, catalog, plugins, chosen, file, world)


def configuration(early: Mapping[str, Any]) -> tuple[RunConfig, original.Overrides]:
    """The configuration file with the early options laid over it, and what `--hp` will lay over everything."""
    names = ("units", "models", "loras", "models_dir", "search", "tables")
    given = {name: early.get(name) for name in names}
    hparams = original.parse_hparams(early.get("hp") or "")
    return configured(early.get("config"), **given, hparams=hparams, source="command line")
