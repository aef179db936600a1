"""`omni models list --here`: the models in the folders of this machine, and the configurations that they serve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar.cli.console import show, table_of
from omniavatar.config import PACKAGED, RunConfig, packaged_configs, parse_config
from omniavatar.config_base import read_config

if TYPE_CHECKING:
    from omniavatar.checkpoints import Registry
    from omniavatar.checkpoints.library import Model
    from omniavatar.locating import Find


@dataclass(frozen=True)
class Here:
    """What was found. finds: for each configuration by name, what it takes for each of its entries."""

    folders: Sequence[Path]
    models: Sequence[Model]
    finds: dict[str, list[Find]]

    @classmethod
    def look(cls, registry: Registry, search: Sequence[str]) -> Here:
        """Look into the folders given, those of OMNI_MODELS, pretrained_models and the cache of Hugging Face."""
        from omniavatar.locating import Places

        configs = {name: config_with(path, search) for name, path in sorted(packaged_configs().items())}
        configs = {name: config for name, config in configs.items() if not config.models_dir.startswith(PACKAGED)}
        first = Places(RunConfig(search=tuple(search)), lambda: registry)
        library = first.library
        finds = {
            name: Places(config, lambda: registry, cache=first.cache, library=library).finds()
            for name, config in configs.items()
        }
        return cls(library.folders, list(library.models()), finds)

    def served(self, model: Model) -> list[str]:
        """The configurations that take a model."""
        path = absolute_parts(model.source)[0]
        return [name for name, finds in self.finds.items() if any(path in paths_of(find) for find in finds)]

    def lacking(self, name: str) -> list[str]:
        """What a configuration lacks."""
        return [path for find in self.finds[name] for path in find.missing]

    def facts(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "folders": [str(folder) for folder in self.folders],
            "models": [model_facts(model, self.served(model)) for model in self.models],
            "configurations": [
                {
                    "name": name,
                    "complete": not self.lacking(name),
                    "models": [find_facts(find) for find in finds],
                }
                for name, finds in self.finds.items()
            ],
        }

    def print(self) -> None:
        """Tables for people."""
        show(f"looked in {', '.join(str(folder) for folder in self.folders) or 'no folder: none of them is there'}")
        if self.models:
            table = table_of("path", "what", "precision", "size", "serves")
            for model in self.models:
                served = ", ".join(self.served(model))
                table.add_row(str(model.place), model.row.name, model.dtype, size(model.nbytes), served)
            show("", table)
        show("", *self.verdicts())

    def verdicts(self) -> Iterator[str]:
        """A line for each configuration, and one for each thing that it lacks."""
        for name in self.finds:
            lacking = self.lacking(name)
            if not lacking:
                yield f"{name}: complete"
                continue
            yield f"{name}: lacks {len(lacking)} of its files (omni models download {name})"
            yield from (f"  {path}" for path in lacking)


def config_with(path: Path, search: Sequence[str]) -> RunConfig:
    """A packaged configuration that looks into further folders."""
    return parse_config({**read_config(path), "search": list(search)}, path)


def paths_of(find: Find) -> list[str]:
    """What a find opens, absolute."""
    return absolute_parts(find.source)


def absolute_parts(source: str | tuple[str, ...] | None) -> list[str]:
    from omniavatar.locating import as_parts

    return [str(Path(part).absolute()) for part in as_parts(source)]


def find_facts(find: Find) -> dict[str, Any]:
    return {
        "wanted": find.entry.parts[0],
        "found": list(paths_of(find)),
        "by": None if find.source is None else "content" if find.model else "path",
        "missing": list(find.missing),
    }


def model_facts(model: Model, serves: Sequence[str]) -> dict[str, Any]:
    return {
        "path": str(model.place),
        "files": [str(file) for file in model.files],
        "name": model.row.name,
        "roles": list(model.row.components),
        "dtype": model.dtype,
        "bytes": model.nbytes,
        "serves": list(serves),
    }


def size(nbytes: float) -> str:
    """Bytes as people read them: 253815318 -> "254 MB"."""
    for limit, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= limit:
            number = nbytes / limit
            return f"{number:.1f} {unit}" if number < 100 and limit == 10**9 else f"{number:.0f} {unit}"
    return f"{nbytes:.0f} B"
