"""Where the models of a configuration lie: at the paths that it names, or wherever a file lies that serves as well.

    config = located(config, ARGUMENTS)    # its entries now name files that exist
    finds = Places(config).finds()         # what was found for each entry, and what is missing

An entry is looked for in this order: at its own path below each folder; in the cache of Hugging Face, as its repository
was downloaded; then, if it says what serves, by content below each folder, the precision that is closest to the one
asked for first. The folders are models_dir, those of `search` and of the variable OMNI_MODELS, and that cache.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from omniavatar.config import OPTIONS, PACKAGED, ModelEntry, RunConfig, Words, explain_missing, found
from omniavatar.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from omniavatar.checkpoints import Detection, Registry
    from omniavatar.checkpoints.library import Library, Model

log = logging.getLogger(__name__)

VARIABLE = "OMNI_MODELS"
ASKED = {"fp32": "float32", "fp16": "float16"}
"""torch's names of the precisions that are not bfloat16."""
Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Find:
    """What was found for an entry.

    entry: as the configuration has it. source: what to open; None: nothing. folders: where things lie that belong
    beside it, if not there; needless: what need not, since something else does. missing: what is absent, as paths.
    model: what was recognised, if that is how it was found; others: further ones that fit. misnamed: what would serve
    but for its name.
    """

    entry: ModelEntry
    source: str | tuple[str, ...] | None
    folders: tuple[Path, ...] = ()
    needless: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    model: Model | None = None
    others: tuple[Model, ...] = ()
    misnamed: tuple[Model, ...] = ()

    @property
    def located(self) -> ModelEntry:
        """The entry with the place in it."""
        assert self.source is not None
        beside = tuple(name for name in self.entry.beside if name not in self.needless)
        folders = (*self.entry.folders, *map(str, self.folders))
        return self.entry.model_copy(update={"path": self.source, "beside": beside, "folders": folders})


class Places:
    """The folders in which the models of a configuration are looked for. tell: takes a line about one of them.

    registry: what models are recognised by; it is asked for when something has to be recognised.
    """

    def __init__(
        self,
        config: RunConfig,
        registry: Callable[[], Registry] | None = None,
        *,
        cache: Path | None = None,
        library: Library | None = None,
    ) -> None:
        self.config = config
        self.cache = cache or hub_cache()
        self._asked = registry or (lambda: registry_of(config))
        if library is not None:
            self.library = library

    @property
    def roots(self) -> tuple[Path, ...]:
        """Where relative paths of the configuration may start, in order."""
        return (self.config.models_folder, *search_folders(self.config))

    @cached_property
    def registry(self) -> Registry:
        """What models are recognised by."""
        return self._asked()

    @cached_property
    def library(self) -> Library:
        """What lies in all of the folders, recognised by content."""
        from omniavatar.checkpoints.library import Library

        own = () if self.config.models_dir.startswith(PACKAGED) else (self.config.models_folder,)
        folders = [*own, *search_folders(self.config), self.cache]
        return Library([folder for folder in folders if folder.is_dir()], self.registry, log.warning)

    def finds(self) -> list[Find]:
        """What was found for every entry, in order."""
        return [self.find(entry) for entry in self.config.models]

    def find(self, entry: ModelEntry) -> Find:
        """What was found for an entry."""
        at_paths = list(self.exact(entry))
        exact = [find for find in at_paths if find.source is not None]
        complete = next((find for find in exact if not find.missing), None)
        if complete is not None:
            return complete
        if entry.serves is not None:
            by_content = self.serving(entry)
            if by_content is not None:
                return by_content
        for find in exact:
            folders = self.completed(entry, Path(as_parts(find.source)[0]).parent)
            if folders is not None and entry.serves is not None:
                return Find(entry, find.source, folders)
        return self.with_misnamed(exact[0] if exact else at_paths[0])

    def exact(self, entry: ModelEntry) -> Iterator[Find]:
        """An entry at its own path below each folder, and in the cache, as far as it is there."""
        from omniavatar.checkpoints.library import snapshot

        for root in self.roots:
            yield self.at(entry, root, entry.parts, unchanged=root == self.config.models_folder)
        folder = snapshot(self.cache, entry.repo) if entry.repo else None
        if folder is not None:
            yield self.at(entry, folder, entry.published_parts)

    def at(self, entry: ModelEntry, root: Path, parts: Sequence[str], *, unchanged: bool = False) -> Find:
        """An entry at these paths below a folder. unchanged: it stays as the user has written it."""
        paths = [str(root / part) for part in parts]
        if not all(found(Path(path)) for path in paths):
            absent = [part for part, path in zip(parts, paths, strict=True) if not found(Path(path))]
            return Find(entry, None, missing=(*absent, *self.absent_beside(entry, root / parts[0])))
        source = paths[0] if isinstance(entry.path, str) else tuple(paths)
        if unchanged:
            source = entry.path
        return Find(entry, source, missing=self.absent_beside(entry, root / parts[0]))

    def absent_beside(self, entry: ModelEntry, place: Path) -> tuple[str, ...]:
        """What does not lie beside a place, though it belongs there, as paths of the configuration."""
        folders = [place.parent, *(Path(folder).expanduser() for folder in entry.folders)]
        absent = [name for name in entry.beside if not any(found(folder / name) for folder in folders)]
        return tuple(str(Path(entry.parts[0]).parent / name) for name in absent)

    def detected(self, find: Find) -> list[Detection]:
        """The models in what was found for an entry, in its role. Raises CheckpointError."""
        root, role = self.config.models_folder, find.entry.role
        sources = find.entry.below(root) if find.source == find.entry.path else find.source
        assert sources is not None
        detections = self.registry.detect_all(sources)
        return detections if role is None else [one.with_role(role) for one in detections]

    def roles_wanted(self, entry: ModelEntry) -> set[str]:
        """The roles of the whole networks of everything that serves an entry; nothing if some is a change to one."""
        from omniavatar.checkpoints.registry import moved_role

        rows = [row for row in self.registry.rows if entry.serves is not None and entry.serves.wants(row)]
        if any(row.is_delta for row in rows):
            return set()
        return {
            moved_role(name, spec, entry.role) for row in rows for name, spec in row.components.items() if spec.is_base
        }

    def is_whole(self, entry: ModelEntry) -> bool:
        """Whether an entry lies at its own path, or in the cache, with all that belongs beside it."""
        return any(find.source is not None and not find.missing for find in self.exact(entry))

    def shared_folders(self, entry: ModelEntry) -> Iterator[Path]:
        """Where those things lie that belong beside an entry and can be used by another one, as far as they do."""
        for name in entry.beside:
            if "/" not in name:
                continue
            folders = [root / Path(entry.parts[0]).parent for root in self.roots]
            there = next((folder for folder in folders if found(folder / name)), None)
            if there is not None:
                yield there

    def serving(self, entry: ModelEntry) -> Find | None:
        """The best model that serves an entry, by content, with all that belongs beside it."""
        assert entry.serves is not None
        asked = ASKED.get(self.config.dtype, "bfloat16")
        models = self.library.serving(entry.serves, asked)
        for index, model in enumerate(models):
            needless = [name for name, ways in entry.serves.instead.items() if any(map(model.has, ways))]
            folders = self.completed(entry, model.place.parent, needless)
            if folders is not None:
                others = (*models[:index], *models[index + 1 :])
                return Find(entry, model.source, folders, tuple(needless), model=model, others=others)
        return None

    def completed(self, entry: ModelEntry, folder: Path, needless: Collection[str] = ()) -> tuple[Path, ...] | None:
        """The folders where those things lie that belong beside a model and are not in its folder.

        A folder's own file, such as a config.json, counts only there; None: something is nowhere.
        """
        folders = []
        for name in entry.beside:
            if name in needless or found(folder / name):
                continue
            elsewhere = self.library.beside(name) if "/" in name else None
            if elsewhere is None:
                return None
            folders.append(elsewhere)
        return tuple(dict.fromkeys(folders))

    def with_misnamed(self, find: Find) -> Find:
        """A find with what would serve but for its name."""
        need = find.entry.serves
        if need is None or find.source is not None or not (need.named or need.not_named):
            return find
        misnamed = tuple(self.library.serving(need, by_name=False))
        return Find(find.entry, None, missing=find.missing, misnamed=misnamed)


def located(config: Config, words: Words = OPTIONS, name: str = "") -> Config:
    """The configuration with its models where they lie; what is taken for another file than it names is told.

    words: how messages call the ways to say where models are. name: of the configuration, if it has one.
    Raises CheckpointError that says what is missing, where it was looked for, and how to get it.
    """
    places = Places(config)
    finds = with_given(places) if any(entry.instead for entry in config.models) else places.finds()
    missing = {find.entry: find.missing for find in finds if find.source is None or find.missing}
    if missing:
        folder = config.models_folder
        hints = [line for find in finds if find.entry in missing for line in misnamed_lines(find, folder)]
        raise CheckpointError(explain_missing(missing, searched(places), words, hints, name))
    for find in finds:
        if find.model is not None:
            log.warning("%s", taken(find))
    entries = [find.located if find.source != find.entry.path or find.folders else find.entry for find in finds]
    return config.model_copy(update={"models": tuple(entries)})


def with_given(places: Places) -> list[Find]:
    """What was found for every entry, without those that are not there and whose place others take (`instead`).

    What belongs beside an entry, such as a tokenizer, counts as beside those that are given instead, unless they have
    their own.
    """
    entries = places.config.models
    given = {entry: places.find(entry) for entry in entries if entry.instead}
    detected = {entry: places.detected(find) for entry, find in given.items() if find.source is not None}
    new = {role: given[entry] for entry, detections in detected.items() for role in base_roles(detections)}
    finds: list[Find] = []
    for entry in entries:
        role = None if entry.instead or not new or places.is_whole(entry) else wanted_role(entry, new, places)
        if role is None:
            finds.append(given.get(entry) or places.find(entry))
        else:
            tell_of_replaced(entry, role, new)
    absent = [find for find in finds if find.source is None]
    role = lacking_role(finds, new, places) if new and len(absent) == 1 else None
    if role is not None:
        finds.remove(absent[0])
        tell_of_replaced(absent[0].entry, role, new)
    beside = tuple(dict.fromkeys(folder for entry in entries for folder in places.shared_folders(entry)))
    own = {
        entry
        for entry, detections in detected.items()
        if any("tokenizer" in part.extras for one in detections for part in one.components)
    }
    return [
        replace(find, folders=(*find.folders, *beside)) if find.entry in detected and find.entry not in own else find
        for find in finds
    ]


def base_roles(detections: Iterable[Detection]) -> set[str]:
    """The roles of the whole networks among some models, without those that only change others."""
    return {part.role for one in detections if not one.row.is_delta for part in one.components if part.spec.is_base}


def wanted_role(entry: ModelEntry, new: Mapping[str, Find], places: Places) -> str | None:
    """A role of an entry whose roles others have, all of them; None: they do not take its place."""
    wanted = places.roles_wanted(entry)
    return min(wanted) if wanted and wanted <= new.keys() else None


def lacking_role(finds: Sequence[Find], new: Mapping[str, Find], places: Places) -> str | None:
    """The role of the one entry that is not there and does not say what serves: what all the others lack."""
    (absent,) = (find for find in finds if find.source is None)
    if absent.entry.serves is not None or absent.entry.strength is not None or absent.entry.instead:
        return None
    others = [find for find in finds if find.source is not None and not find.entry.instead]
    lacking = new.keys() - {role for find in others for role in base_roles(places.detected(find))}
    return min(lacking) if lacking else None


def tell_of_replaced(entry: ModelEntry, role: str, new: Mapping[str, Find]) -> None:
    """Warn that something is given in the place of what is not there."""
    file = as_parts(new[role].source)[0]
    log.warning("%s takes the place of %s as '%s', which is not there", file, entry.parts[0], role)


def taken(find: Find) -> str:
    """One line about a model that was found by content."""
    assert find.model is not None
    what = f"{find.model.place} ({find.model.dtype}) is used as {find.entry.parts[0]}"
    if find.others:
        names = ", ".join(str(other.place) for other in find.others[:2])
        more = f" and {len(find.others) - 2} more" if len(find.others) > 2 else ""
        what += f"; {names}{more} would serve too"
    return what


def misnamed_lines(find: Find, folder: Path) -> Iterator[str]:
    """What to say of files that would serve but for their names."""
    for model in find.misnamed[:2]:
        yield (
            f"{model.place} has the layout of {find.entry.parts[0]}, but is not named like it; if it is that model, "
            f"link to it from {folder / find.entry.parts[0]}"
        )


def searched(places: Places) -> list[Path]:
    """The folders that a message names."""
    cache = [places.cache] if places.cache.is_dir() else []
    return [*places.roots, *cache]


def search_folders(config: RunConfig) -> list[Path]:
    """The folders that are searched beside models_dir. Raises InputError for one that is asked for and is not there."""
    asked = [Path(folder).expanduser() for folder in config.search]
    for folder in asked:
        if not folder.is_dir():
            raise InputError(f"models are to be searched in {folder}, and there is no such folder")
    return list(dict.fromkeys([*asked, *folders_of_user()]))


def folders_of_user(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """The folders that the variable OMNI_MODELS names; those that are not there are named in the log."""
    named = [Path(folder).expanduser() for folder in environment.get(VARIABLE, "").split(os.pathsep) if folder]
    there = [folder for folder in named if folder.is_dir()]
    for folder in named:
        if folder not in there:
            _tell_of_missing(folder)
    return there


@cache
def _tell_of_missing(folder: Path) -> None:
    """Once for each folder: it is asked for often."""
    log.warning("%s names %s, and there is no such folder", VARIABLE, folder)


def hub_cache() -> Path:
    """The cache of Hugging Face, which HF_HUB_CACHE or HF_HOME can move."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def registry_of(config: RunConfig) -> Registry:
    """The tables of all packages, and those of the configuration."""
    from omniavatar.plugins import discover

    return discover().registry(map(Path, config.tables))


def as_parts(source: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """One path or several, as several."""
    return (source,) if isinstance(source, str) else source or ()
