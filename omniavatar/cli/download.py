"""`omni models download`: the models of a configuration, from where they are published."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from omniavatar.cli.console import show, tell
from omniavatar.cli.here import size
from omniavatar.cli.progress import Display, Progressing, display_for
from omniavatar.config import PACKAGED, RunConfig, find_config, packaged_configs, parse_config
from omniavatar.config_base import read_config
from omniavatar.engine.progress import Status
from omniavatar.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from omniavatar.downloading import Hub, Remote, Wish
    from omniavatar.locating import Find

LARGE = 20 * 10**9
"""Bytes from which on the user is asked."""
KINDS = ("", "train")
FIELDS = ("models", "models_dir", "search", "tables", "dtype")
"""What matters of a configuration."""


@dataclass(frozen=True)
class Order:
    """What is to be done. there: a line for each model that need not be downloaded."""

    there: Sequence[str]
    wishes: Sequence[str]
    remotes: Sequence[Remote]
    nbytes: int


@click.command(short_help="Download the models of a configuration.")
@click.argument("configuration")
@click.option(
    "--quant",
    metavar="PRECISION",
    help="Take smaller files where some are published: fp8, gguf-q8, bf16.  [default: as the authors publish them]",
)
@click.option("--models", "search", multiple=True, metavar="FOLDER", help="What lies below FOLDER need not come.")
@click.option("--yes", is_flag=True, help="Do not ask before more than 20 GB.")
@click.option("--dry-run", is_flag=True, help="Say what would come, and download nothing.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def download(configuration: str, quant: str | None, search: tuple[str, ...], **flags: bool) -> None:
    """Download the models of CONFIGURATION, such as omniavatar-1.3b, into the cache of Hugging Face.

    omni run finds them there. What is already on this machine is left out, an interrupted download goes on where it
    stopped, and every file is checked. HF_HOME names another place, HF_ENDPOINT a mirror; 'hf auth login' logs in.
    """
    from omniavatar.downloading import Hub

    config = config_of(configuration, search)
    hub = Hub()
    order = order_of(config, quant, hub)
    if not flags["quiet"]:
        show(*order.there, *order.wishes)
    if not order.remotes:
        if not flags["quiet"]:
            tell("everything is there")
        return
    if flags["dry_run"]:
        return
    hub.check_room(order.nbytes)
    confirm(order, is_agreed=flags["yes"])
    with display_for(Progressing(), quiet=flags["quiet"]) as display:
        Downloads(order, display).run(hub)
    if not flags["quiet"]:
        tell(f"{len(order.remotes)} files are in {hub.cache}; omni run --config {configuration} finds them there")


def config_of(name: str, search: Sequence[str]) -> RunConfig:
    """The models of a configuration for videos or for training, by name or file."""
    kind = next((kind for kind in KINDS if name in packaged_configs(kind)), "")
    path = find_config(name, kind)
    content = read_config(path, kind)
    fields = {key: value for key, value in content.items() if key in FIELDS}
    config = parse_config({**fields, "search": [*search, *fields.get("search", ())]}, path)
    if config.models_dir.startswith(PACKAGED):
        raise InputError(f"{name} comes with this package; there is nothing to download")
    return config


def order_of(config: RunConfig, quant: str | None, hub: Hub) -> Order:
    """What is there, and what is not."""
    from omniavatar.downloading import PUBLISHED, total, wishes_of
    from omniavatar.locating import Places

    places = Places(config, cache=hub.cache)
    finds = {find.entry: find for find in places.finds()}
    there: dict[str, None] = {}
    lines: list[str] = []
    todo: dict[tuple[str, str], Remote] = {}
    for wish in wishes_of(config, quant):
        find = finds[wish.entry]
        if is_complete(find) and (wish.quant == PUBLISHED or place_of(find).name in names_of(wish)):
            there[f"there: {place_of(find)}"] = None
            continue
        remotes = hub.files(wish.published)
        absent = [remote for remote in remotes if hub.cached(remote) is None]
        if not absent:
            there[f"there: {wish.published.repo} ({size(total(remotes))})"] = None
            continue
        todo |= {(remote.repo, remote.name): remote for remote in absent}
        lines.append(line_of(wish, absent, remotes, quant))
    remotes = list(todo.values())
    return Order(list(there), lines, remotes, total(remotes) - sum(map(hub.partial, remotes)))


def is_complete(find: Find) -> bool:
    """Whether an entry needs nothing more."""
    return find.source is not None and not find.missing


def names_of(wish: Wish) -> set[str]:
    """What the files are called that are published for an entry in the precision of a wish."""
    return {Path(file).name for published in wish.entry.quants[wish.quant] for file in published.files}


def place_of(find: Find) -> Path:
    """Where something lies that is there."""
    from omniavatar.locating import as_parts

    return Path(as_parts(find.source)[0])


def line_of(wish: Wish, absent: Sequence[Remote], remotes: Sequence[Remote], quant: str | None) -> str:
    """What is said of files that are to come."""
    from omniavatar.downloading import PUBLISHED, total

    names = absent[0].name if len(absent) == 1 else f"{len(absent)} files"
    had = f", {len(remotes) - len(absent)} are there" if len(absent) < len(remotes) else ""
    plain = f"; as published, no {quant} is known for it" if quant and wish.quant == PUBLISHED else ""
    return f"to come: {wish.published.repo}: {names} ({size(total(absent))}{had}{plain})"


def confirm(order: Order, *, is_agreed: bool) -> None:
    """Ask before much is downloaded. Raises InputError where nobody can be asked."""
    if is_agreed or order.nbytes <= LARGE:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{size(order.nbytes)} are to come; agree with --yes, or take less with --quant")
    click.confirm(f"download {size(order.nbytes)}?", abort=True, err=True)


class Downloads:
    """Downloads one file after another, and shows how far it is."""

    def __init__(self, order: Order, display: Display) -> None:
        self.order, self.display = order, display
        self.total = sum(remote.size for remote in order.remotes)
        self.before = 0
        self.began = time.monotonic()
        self.had: int | None = None

    def run(self, hub: Hub) -> None:
        """Download all. A file that fails ends it; those before it are kept."""
        for number, remote in enumerate(self.order.remotes, start=1):
            text = f"{remote.name} ({number} of {len(self.order.remotes)})"
            try:
                hub.fetch(remote, lambda nbytes, text=text: self.show(text, nbytes))  # type: ignore[misc]
            except KeyboardInterrupt as error:
                error.add_note("what has come is kept; the same command goes on")
                raise
            except CheckpointError as error:
                if number > 1:
                    error.add_note(f"{number - 1} of {len(self.order.remotes)} files are complete")
                raise
            self.before += remote.size
            self.display.show(Status(text, self.before, self.total, milestone=True))

    def show(self, text: str, nbytes: int) -> None:
        """Show that so many bytes of a file are there."""
        done = self.before + nbytes
        if self.had is None:
            self.had = done  # of an earlier download
        seconds, come = time.monotonic() - self.began, done - self.had
        left = (self.total - done) * seconds / come if come else None
        self.display.show(Status(text, done, self.total, left))
