"""A configuration over its base: with `base: NAME` it says only what it has other than that one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omniavatar import original
from omniavatar.config import DEFAULT_UNITS, at_home, changed_plan, find_config, joined_plan, read_yaml
from omniavatar.errors import InputError

HERE = re.compile(r"^([a-z]\w*=)?here:")
"""How a path beside the configuration begins, behind the role of a model if there is one."""


def read_config(path: Path, kind: str = "") -> dict[str, Any]:
    """The content of a configuration file over that of its base. Raises InputError.

    kind: of packaged configurations, among which the base may be.
    """
    return over_base(read_yaml(path), path, kind)


def over_base(content: Mapping[str, Any], source: Path, kind: str = "", above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A configuration's content over that of its base, if it names one; "here:x" is x in the folder of the file.

    Mappings are merged name by name, units that begin with a sign change the base's, and models and tables are
    added to its own; of anything else the base's is replaced. above: the files that have led here. Raises InputError.
    """
    places = ("models", "models_dir", "search", "tables")
    own = {key: beside(value, source.parent) if key in places else value for key, value in content.items()}
    name = own.get("base")
    if name is None:
        return own
    if not isinstance(name, str):
        raise InputError(f"{source}: base = {name!r}: give the name of a configuration, or a file")
    below = base_content(name, source, kind, (*above, source))
    merged = laid_over(below, own)
    if "units" in own:
        merged["units"] = changed_plan(joined_plan(below.get("units", DEFAULT_UNITS)), joined_plan(own["units"]))
    for key in ("models", "search", "tables"):
        files = [content[key] for content in (below, own) if content.get(key)]
        if all(isinstance(some, list | tuple) for some in files):
            merged[key] = [file for some in files for file in some]
    return {**merged, "base": below.get("base", name)}


def base_content(name: str, source: Path, kind: str, above: tuple[Path, ...]) -> dict[str, Any]:
    """The content of the configuration that the one in `source` names as its base."""
    file = source.parent / at_home(name)
    path = file if file.is_file() else find_config(name, kind)
    if path.resolve() in {before.resolve() for before in above}:
        raise InputError(f"{source}: base = {name!r} leads back to {path}; name another configuration")
    content = read_yaml(path)
    if original.is_original(content):
        return original.translate(content, {}, path).model_dump(exclude_unset=True)
    return over_base(content, path, kind, above)


def laid_over(below: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """The values of two mappings, those of the second counting; mappings inside are laid over each other too."""
    both = {key for key in content if isinstance(content[key], Mapping) and isinstance(below.get(key), Mapping)}
    return {**below, **content, **{key: laid_over(below[key], content[key]) for key in both}}


def beside(value: Any, folder: Path) -> Any:
    """Paths with "here:" in front as absolute ones below a folder; also those inside lists and mappings."""
    if isinstance(value, str):
        return HERE.sub(lambda found: f"{found[1] or ''}{folder.absolute()}/", value)
    if isinstance(value, list | tuple):
        return [beside(item, folder) for item in value]
    return {key: beside(item, folder) for key, item in value.items()} if isinstance(value, Mapping) else value
