"""pydantic fields for people and from people: what kind of value, which bounds, which default; and text to a value."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click

from omniavatar.errors import InputError, shown
from omniavatar.values import parse_yaml

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

KINDS = {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH", tuple: "LIST", list: "LIST"}
LIMITS = {"ge": "from", "gt": "above", "le": "up to", "lt": "below"}


class UserPath(click.Path):
    """A path in which `~` is the user's folder, also where no shell has put it there: `--write=~/a.toml`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(os.path.expanduser(value), param, ctx)


LONGEST = 100
"""Letters of a value that are shown in an error."""
BOUNDS = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
}
FAULTS = {
    "finite_number": "not a number",
    "float_parsing": "not a number",
    "float_type": "not a number",
    "int_parsing": "not a whole number",
    "int_type": "not a whole number",
    "int_from_float": "not a whole number",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
}
"""In the words of users, by pydantic's type of an error."""
NOTHING = ("none", "null", "~")


def kind(info: FieldInfo) -> str:
    """What stands for the value in help texts: "NUMBER", "IMAGE", "exact|original", ..."""
    for mark in [*info.metadata, *marks(info.annotation)]:
        if hasattr(mark, "kind"):
            return str(mark.kind).upper()
    kinds = [
        "|".join(map(str, get_args(leaf)))
        if get_origin(leaf) is Literal
        else KINDS.get(get_origin(leaf) or leaf, "VALUE")
        for leaf in leaves(info.annotation)
    ]
    return "|".join(dict.fromkeys(kinds))


def bounds(info: FieldInfo) -> str:
    """The limits of a number: "1 to 10", "above 0, up to 10", or nothing."""
    limits = {key: f"{getattr(rule, key):g}" for rule in info.metadata for key in LIMITS if hasattr(rule, key)}
    if "ge" in limits and "le" in limits:
        return f"{limits['ge']} to {limits['le']}"
    return ", ".join(f"{LIMITS[key]} {limit}" for key, limit in limits.items())


def default(info: FieldInfo) -> str:
    """The default in few words; nothing for a required or an empty one."""
    if info.is_required() or info.default is None:
        return ""
    text = str(info.default).lower() if isinstance(info.default, bool) else as_text(info.default)
    return text if len(text) <= 40 else f"{text[:40]}..."


def as_text(value: Any) -> str:
    """A value as it is written on the command line: tuples as YAML lists."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(as_text(item) for item in value)}]"
    return str(value)


def parse_value(text: str, info: FieldInfo) -> Any:
    """The text itself where the field takes text, else what it means in YAML. pydantic checks the rest."""
    if takes_text(info):
        return text
    if text.lower() in NOTHING:
        return None
    try:
        return parse_yaml(text)
    except ValueError:
        return text


def check_values(schema: type[BaseModel], values: Mapping[str, Any], options: Mapping[str, str]) -> None:
    """Refuse values that their own fields refuse, by the option that gave each. Raises InputError.

    options: by the name of a field. What several fields say together is checked where all are known.
    """
    from pydantic import ValidationError

    for name, value in values.items():
        try:
            schema(**{name: value})
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                if fault["loc"][:1] == (name,):
                    raise InputError(f"{options[name]} {as_text(value)[:LONGEST]}: {in_words(fault)}") from None


def in_words(fault: Mapping[str, Any]) -> str:
    """What is wrong with one value, of what pydantic says about it."""
    inner = ".".join(str(part) for part in fault["loc"][1:] if isinstance(part, int))
    limits, value = fault.get("ctx", {}), fault["input"]
    words = FAULTS.get(fault["type"], "")
    if fault["type"] in BOUNDS:
        words = "not a number" if str(value).lower().strip(".") == "nan" else BOUNDS[fault["type"]].format(**limits)
    elif fault["type"] == "literal_error":
        words = f"choices: {limits['expected'].replace(' or ', ', ')}".replace("'", "")
    elif not words:
        text = str(fault["msg"]).removeprefix("Value error, ")
        words = text[:1].lower() + text[1:]
    return f"item {inner} is {shown(value)}: {words}" if inner else words


def takes_text(info: FieldInfo) -> bool:
    """Whether a field takes a string or a path."""
    return any(
        leaf in (str, Path) or (get_origin(leaf) is Literal and isinstance(get_args(leaf)[0], str))
        for leaf in leaves(info.annotation)
    )


def leaves(annotation: Any) -> Iterator[Any]:
    """The types in a union, without None and without their annotations."""
    if get_origin(annotation) is Annotated:
        yield from leaves(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from leaves(part)
    elif annotation is not NoneType:
        yield annotation


def marks(annotation: Any) -> Iterator[Any]:
    """What annotations say about the types in a union."""
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from marks(part)
