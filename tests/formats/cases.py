"""The cases of a directory of weight files: what `cases.json` says, and the folders that a case builds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["lora_dialect", "quantised", "gguf", "naming", "broken"]


class Strict(BaseModel):
    """A field that is not known here is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tolerance(Strict):
    """How far two tensors may be apart, in numbers or in the words of `compare`."""

    atol: float | None = None
    rtol: float | None = None
    compare: str = ""
    rounded: str | None = None


class Linear(Strict):
    """A layer whose input and output lie beside the expected weights."""

    layer: str
    note: str = ""
    tolerance: Tolerance


class Link(Strict):
    """One entry of a folder that is built: a copy, a symbolic link or a text file."""

    path: str
    copy_of: str | None = None
    link_to: str | None = None
    text: str | None = None


class Tree(Strict):
    root: str
    links: tuple[Link, ...]


class Args(Strict):
    """What a case asks for beside its files."""

    strengths: tuple[float, ...] = ()
    role: str = ""
    prefix: str = ""
    wrapper: str | None = None
    config: dict[str, Any] = {}
    expected_prefix: str | None = None
    tree: Tree | None = None
    open: tuple[str, ...] = ()
    base_is_quantised: str | None = None
    unquantised: str = ""


class Alternative(Strict):
    reader: str
    expected: str
    note: str = ""


class Case(Strict):
    """One case, as section 0 of the description of the formats says."""

    name: str
    kind: Kind
    files: tuple[str, ...] = Field(min_length=1)
    base: str | None = None
    args: Args = Args()
    expected: str | None = None
    keys: str | None = None
    expected_rounded: str | None = None
    alternatives: tuple[Alternative, ...] = ()
    tolerance: Tolerance = Tolerance()
    error: str | None = None
    also_acceptable: str | None = None
    linear: Linear | None = None
    partial: bool = False
    optional: bool | str = False
    role: str = ""
    note: str = ""
    provenance: dict[str, Any] = {}


class Collection(Strict):
    """The whole of a `cases.json`."""

    format: Literal[1]
    set: str
    cases: tuple[dict[str, Any], ...]


def read_cases(folder: Path) -> list[dict[str, Any]]:
    """The cases of a directory as they stand there; `Case.model_validate` checks each."""
    collection = Collection.model_validate(json.loads((folder / "cases.json").read_text(encoding="utf-8")))
    return list(collection.cases)


def build(tree: Tree, source: Path, place: Path) -> Path:
    """Make the folder of a case in an empty one; returns its root."""
    root = place / inner(tree.root)
    for link in tree.links:
        path = root / inner(link.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if link.copy_of is not None:
            shutil.copyfile(source / inner(link.copy_of), path)
        elif link.link_to is not None:
            path.symlink_to(link.link_to)
        elif link.text is not None:
            path.write_text(link.text, encoding="utf-8")
        else:
            raise ValueError(f"the tree's entry '{link.path}' is neither copy, link nor text")
    return root


def inner(path: str) -> str:
    """A relative path that stays inside its folder."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"'{path}' leaves the folder of the cases")
    return path
