"""The package that `omni plugins new` writes: `omniavatar/assets/plugin` with a name filled in."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from omniavatar.errors import InputError, OutputError
from omniavatar.resources import asset

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 60
"""Letters of a name; longer ones make paths that some systems cannot have."""
SUFFIX = ".in"
"""Of the template's files, so that no tool takes them for what they are to become."""


def check_name(name: str, taken: Mapping[str, str]) -> None:
    """Refuse a name that a unit cannot have, or that something has already. Raises InputError.

    taken: names that are in use, and for what.
    """
    if not NAME.fullmatch(name):
        near = re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()).strip("-0123456789")
        hint = f"such as '{near}'" if NAME.fullmatch(near) else "such as 'slow-motion'"
        raise InputError(f"'{name}' is no name for a unit; use lower-case letters, digits and single hyphens, {hint}")
    if len(name) > LONGEST:
        raise InputError(f"the name '{name[:LONGEST]}...' has {len(name)} letters; take up to {LONGEST}")
    if name in taken:
        raise InputError(f"'{name}' is a {taken[name]} already; choose another name")
    if keyword.iskeyword(class_name(name)) or class_name(name) in classes_of_template():
        raise InputError(f"a class '{class_name(name)}' cannot be; choose another name than '{name}'")


def class_name(name: str) -> str:
    """`slow-motion` -> `SlowMotion`."""
    return "".join(part.capitalize() for part in name.split("-"))


def classes_of_template() -> set[str]:
    """The names that the modules of the template import and define."""
    lines = [line.strip() for _, text in template_files(asset("plugin")) for line in text.splitlines()]
    named = " ".join(line for line in lines if line.startswith(("from ", "import ", "class ")))
    return set(re.findall(r"\b[A-Z]\w*", named))


def write_package(name: str, folder: Path) -> None:
    """Write the template with this name. Raises OutputError if the folder exists or cannot be made."""
    if folder.exists():
        raise OutputError(f"{folder} exists already; name another folder, or move it away")
    module = f"omniavatar_{name.replace('-', '_')}"
    names = {"name": name, "package": f"omniavatar-{name}", "module": module, "unit": class_name(name)}
    names["key"] = module.removeprefix("omniavatar_")
    try:
        for place, text in template_files(asset("plugin")):
            path = folder / Template(place).substitute(names)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).substitute(names), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from None


def template_files(folder: Traversable, place: str = "") -> Iterator[tuple[str, str]]:
    """The files of the template: where each goes, and its text."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from template_files(entry, f"{place}{entry.name}/")
        elif entry.name.endswith(SUFFIX):
            yield place + entry.name.removesuffix(SUFFIX), entry.read_text(encoding="utf-8")
