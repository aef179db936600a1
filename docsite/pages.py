"""Pages that are made from the code whenever the site is built: units, hooks, commands, checkpoints.

pages() -> {"units.md": "# Units ...", ...}
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click

from omniavatar import sdk
from omniavatar.cli import build_cli, run_cli
from omniavatar.cli.models import TEST_TABLE, billions, recognised_by, row_facts
from omniavatar.cli.unit_page import UnitPage
from omniavatar.hookspecs import PROJECT, Discovery, Pipeline
from omniavatar.plugins import OWN_PACKAGE, Plugins, discover

ROOT = Path(__file__).parents[1]
COLUMNS = "100"
"""Of the help texts."""
TOP_PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages of the site that are files at the top of the repository."""
REPOSITORY = re.compile(r"\[([^\]]*)\]\((?!docs/|[a-z]+:|#)[^)]*\)")
"""A link to something that is in the repository and not on the site."""


def pages() -> dict[str, str]:
    """Markdown by the name of the page. Raises RuntimeError if a plugin package does not work."""
    plugins = discover()
    made = {
        "units.md": units_page(plugins),
        "hooks.md": hooks_page(),
        "sdk.md": sdk_page(),
        "commands.md": commands_page(),
        "checkpoints.md": checkpoints_page(plugins),
        **{name: top_page(file) for name, file in TOP_PAGES.items()},
    }
    if plugins.failures:
        raise RuntimeError(f"pages would lack what is broken: {plugins.failures}")
    return made


def top_page(file: str) -> str:
    """A file of the repository's top, with links that lead to pages of the site."""
    text = (ROOT / file).read_text(encoding="utf-8")
    for page, other in TOP_PAGES.items():
        text = text.replace(f"]({other}", f"](docs/{page}")
    return REPOSITORY.sub(r"`\1`", text).replace("](docs/", "](")


# Units ----------------------------------------------------------------------------------------------------------------


def units_page(plugins: Plugins) -> str:
    """Every unit of the engine and of the installed plugin packages, by package."""
    catalog = plugins.catalog()
    packages = {name: plugins.package_of(by) for name, by in plugins.owners["unit"].items()}
    intro = "What `omni units show NAME` says, for every unit of the engine and of the first-party plugins."
    lines = ["# Units", "", intro, ""]
    in_order = sorted(
        catalog.units.values(), key=lambda unit: (packages[unit.name] != OWN_PACKAGE, packages[unit.name])
    )
    for package, units in groupby(in_order, lambda unit: packages[unit.name]):
        lines += [f"## {package}", ""]
        for unit in units:
            lines += [*unit_section(UnitPage.of(unit, package)), ""]
    presets = [(name, f"`{expression}`") for name, expression in catalog.presets.items()]
    return "\n".join([*lines, "## Presets", "", *table(("preset", "plan"), presets), ""])


def place(package: str) -> tuple[bool, str]:
    """What packages are sorted by: the engine's own units come first."""
    return package != OWN_PACKAGE, package


def unit_section(page: UnitPage) -> Iterator[str]:
    """A unit's page in Markdown: the same texts as on the terminal."""
    yield from (f"### {page.name}", "", text(page.text), "")
    for found in page.tables:
        yield from (*table(found.headings, found.rows), "")
    for title, fact in page.facts.items():
        yield f"- **{title}**: {text(fact)}"


# Hooks ----------------------------------------------------------------------------------------------------------------


def hooks_page() -> str:
    """Every hook with its signature and its docstring, as `omniavatar/hookspecs.py` has them."""
    lines = ["# Hooks", "", text(inspect.getdoc(inspect.getmodule(Pipeline)) or ""), ""]
    for title, group in (("What a package brings", Discovery), ("What a unit does", Pipeline)):
        lines += [f"## {title}", "", text(inspect.getdoc(group) or ""), ""]
        for name, function in hooks_of(group).items():
            lines += [f"### {name}", "", "```python", signature(function), "```", "", *answers(function)]
            lines += [text(inspect.getdoc(function) or ""), ""]
    return "\n".join(lines)


def hooks_of(group: type) -> dict[str, Callable[..., Any]]:
    """The hooks of a group by name, in the order of the source."""
    return {name: function for name, function in vars(group).items() if hasattr(function, f"{PROJECT}_spec")}


def answers(function: Callable[..., Any]) -> list[str]:
    """A line on a hook whose implementations are asked until one answers."""
    return ["*First result.*", ""] if getattr(function, f"{PROJECT}_spec")["firstresult"] else []


def signature(function: Callable[..., Any]) -> str:
    """A hook as an implementation would write it."""
    found = inspect.signature(function)
    returned = "" if found.return_annotation is inspect.Signature.empty else f" -> {found.return_annotation}"
    parameters = [
        name if parameter.annotation is inspect.Parameter.empty else f"{name}: {parameter.annotation}"
        for name, parameter in found.parameters.items()
    ]
    return f"def {function.__name__}({', '.join(parameters)}){returned}"


# The SDK --------------------------------------------------------------------------------------------------------------


def sdk_page() -> str:
    """Every name of `omniavatar.sdk`, by what it is about, with the beginning of its docstring."""
    lines = ["# The SDK", "", text(inspect.getdoc(sdk) or ""), "", f"This is API {sdk.API}.", ""]
    for title, names in sdk.GROUPS.items():
        lines += [
            f"## {title}",
            "",
            *table(("name", "what it is"), [(f"`{name}`", meaning(name)) for name in names]),
            "",
        ]
    return "\n".join(lines)


def meaning(name: str) -> str:
    """What a name of the SDK is, in a sentence or two."""
    return sdk.MEANINGS.get(name) or " ".join((inspect.getdoc(getattr(sdk, name)) or "").partition("\n\n")[0].split())


# Commands -------------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its help; the options of units that `omni run` has are those of the default plan."""
    lines = ["# Commands", "", "The help of every command, as `--help` prints it with the default configuration.", ""]
    cli = build_cli()
    with click.Context(cli, info_name="omni") as ctx:
        for words in commands_of(cli, ctx):
            name = " ".join(("omni", *words))
            lines += [f"{'##' if len(words) < 2 else '###'} {name}", "", "```text", help_of(words), "```", ""]
    return "\n".join(lines)


def commands_of(group: click.Group, ctx: click.Context, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of a group and of every command below it."""
    yield before
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield from commands_of(command, ctx, (*before, name))
        elif command is not None:
            yield (*before, name)


def help_of(words: Sequence[str]) -> str:
    """What `omni WORDS --help` prints."""
    printed = io.StringIO()
    with patch.dict("os.environ", {"COLUMNS": COLUMNS}), contextlib.redirect_stdout(printed):
        code = run_cli([*words, "--help"])
    if code:
        raise RuntimeError(f"omni {' '.join(words)} --help ended with {code}")
    return printed.getvalue().rstrip()


# Checkpoints ----------------------------------------------------------------------------------------------------------


def checkpoints_page(plugins: Plugins) -> str:
    """Every checkpoint of the tables, as `omni models list` has them, by table."""
    registry = plugins.registry()
    intro = "Known model files, as `omni models list` shows them; `omni models inspect FILE` says what a file is."
    lines = ["# Checkpoints", "", intro, ""]
    headings = ("name", "roles", "parameters", "repository", "recognised by", "note")
    for table_name, rows in groupby(registry.rows, lambda row: Path(str(registry.origin(row))).name):
        if table_name == TEST_TABLE:
            continue
        lines += [f"## {table_name}", ""]
        cells = [
            (
                row.name,
                ", ".join(row_facts(row)["roles"]),
                billions(row.num_params),
                f"[{row.repo}](https://huggingface.co/{row.repo})" if row.repo else "",
                recognised_by(row),
                row.note,
            )
            for row in rows
        ]
        lines += [*table(headings, cells), ""]
    return "\n".join(lines)


# Markdown -------------------------------------------------------------------------------------------------------------


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown."""
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(cell(one) for one in row)} |"


def cell(words: str) -> str:
    """A text for a cell of a table, on one line."""
    return outside_code(" ".join(words.split()), {"<": "&lt;", "*": "&#42;", "|": "&#124;"})


def text(words: str) -> str:
    """A docstring as Markdown: nothing in it is taken for a tag of HTML or for emphasis."""
    return outside_code(words, {"<": "&lt;", "*": "&#42;"})


def outside_code(words: str, replaced: Mapping[str, str]) -> str:
    """Replace letters wherever they do not stand between backticks."""
    parts = words.split("`")
    for letter, other in replaced.items():
        parts[::2] = [part.replace(letter, other) for part in parts[::2]]
    return "`".join(parts)
