"""The packages that `omni plugins new` writes: folders of `omniavatar/assets/plugin` with a name filled in.

A package is made of the files in the folder `common` and of those in the folder of its kind; where both have a file of
one name, that of the kind counts.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Kind:
    """A kind of package. about: what it is, in the words of its README. command: one to try it, behind `omni`."""

    about: str
    command: str


KINDS = {
    "network": Kind("The unit $name, with a network and the table of its files,", "run --units default+$name"),
    "tint": Kind("The unit $name, which changes what is shown,", "run --units default+$name --$name.strength 0.5"),
    "guidance": Kind("The guidance rule $name", "run --units default+$name --$name.scale 6"),
    "sampler": Kind("The solver $name", "run --units default+$name --$name.fresh 0.5"),
    "block": Kind("The unit $name, which acts between the blocks of the transformer,", "run --units default+$name"),
    "format": Kind("The weight format $name", "plugins list"),
}
"""By the name that `--like` takes; the first one counts without it."""
FILES = {
    "__init__.py": "what the package brings; imports stand inside the functions, so that `omni --help` stays fast",
    "unit.py": "the unit: its settings, the values that it reads and stores, its hooks",
    "network.py": "a network, in plain torch",
    "format.py": "the format: names and shapes of a file without its data, then its weights",
    "packed.py": "a weight that stays in memory as it lies in its file",
    "$key.toml": "how a file with its weights is recognised",
    "tests": "its tests; `check_unit` asks a unit for all that the engine relies on",
}
"""What files of a template are, by the end of their names or by their folder."""


def check_name(name: str, taken: Mapping[str, str], like: str = "network") -> None:
    """Refuse a name that a package of a kind cannot have, or that something has already. Raises InputError.

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
    if keyword.iskeyword(class_name(name)) or class_name(name) in classes_of_template(like):
        raise InputError(f"a class '{class_name(name)}' cannot be; choose another name than '{name}'")


def class_name(name: str) -> str:
    """`slow-motion` -> `SlowMotion`."""
    return "".join(part.capitalize() for part in name.split("-"))


def classes_of_template(like: str) -> set[str]:
    """The names that the modules of a kind import and define."""
    lines = [line.strip() for text in files_of(like).values() for line in text.splitlines()]
    named = " ".join(line for line in lines if line.startswith(("from ", "import ", "class ")))
    return set(re.findall(r"\b[A-Z]\w*", named))


def write_package(name: str, folder: Path, like: str = "network") -> None:
    """Write a package of a kind with this name. Raises OutputError if the folder exists or cannot be made."""
    if folder.exists():
        raise OutputError(f"{folder} exists already; name another folder, or move it away")
    module = f"omniavatar_{name.replace('-', '_')}"
    names = {"name": name, "package": f"omniavatar-{name}", "module": module, "unit": class_name(name)}
    names["key"] = module.removeprefix("omniavatar_")
    names["about"] = Template(KINDS[like].about).substitute(names)
    names["command"] = " ".join(command(name, like))
    names["files"] = "".join(f"| `{place}` | {what} |\n" for place, what in described(files_of(like), names))
    try:
        for place, text in files_of(like).items():
            path = folder / Template(place).substitute(names)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).substitute(names), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from None


def command(name: str, like: str) -> list[str]:
    """A command that tries a package of a kind."""
    return ["omni", *Template(KINDS[like].command).substitute(name=name).split()]


def described(places: Mapping[str, str], names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The files of a package that its README explains, and what they are."""
    for place in places:
        for end, what in FILES.items():
            if place.endswith(end) or place.startswith(f"{end}/"):
                yield Template(place).substitute(names), what
                break


def files_of(like: str) -> dict[str, str]:
    """The files of a kind: where each goes, and its text."""
    found = {place: text for folder in ("common", like) for place, text in template_files(asset("plugin", folder))}
    return dict(sorted(found.items()))


def template_files(folder: Traversable, place: str = "") -> Iterator[tuple[str, str]]:
    """The files in a folder of templates: where each goes, and its text."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from template_files(entry, f"{place}{entry.name}/")
        elif entry.name.endswith(SUFFIX):
            yield place + entry.name.removesuffix(SUFFIX), entry.read_text(encoding="utf-8")
