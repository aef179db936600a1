"""The checkpoint tables: TOML files with one `[[checkpoint]]` row per known checkpoint, read and checked.

A `[[tuned]]` row has further settings of units for the checkpoint with its `hash`; `omni calibrate` writes such tables.

`[[container]]` and `[[dialect]]` rows are about other programs' names (dialects.py), `[[unsupported]]` rows name
checkpoints whose networks are not here.

A row is recognised by `hash` (of names and shapes), by `match` (patterns that must all occur, for files whose hash
varies), by `model_type` (of the `config.json` in a Hugging Face folder) or as `lora` (by the endings of names).
`[checkpoint.components.ROLE]` says what it provides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from omniavatar.checkpoints.dialects import Container, Dialect
from omniavatar.checkpoints.names import Rename, matches, occurs, rename, undo
from omniavatar.errors import CheckpointError
from omniavatar.values import parse_toml

KINDS = {"checkpoint", "tuned", "container", "dialect", "unsupported"}
"""Kinds of rows of a table."""
Table = Path | Traversable
"""A TOML file; plugins name theirs through importlib.resources."""


class ComponentSpec(BaseModel):
    """What a checkpoint provides for one role. `config` and `constants` may hold formulas (see formulas.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    network: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="`module:Class`; none for bare tensors; of an overlay with modules of its own, a subclass",
    )
    config: dict[str, Any] = Field(
        {}, description="constructor arguments of the network; of an overlay, those it changes"
    )
    keys: tuple[str, ...] = Field(("*",), description="patterns of the file's names that belong to this component")
    rename: tuple[Rename, ...] = Field((), description="rules from the file's names to the network's")
    constants: dict[str, Any] = Field({}, description="facts about this checkpoint for whoever uses it")
    growable: tuple[str, ...] = Field(
        (), description="network names whose tensor may be larger than the file's; the rest is 0"
    )
    optional: tuple[str, ...] = Field((), description="network names that the file may lack; they become 0")
    overlay: bool = Field(False, description="the tensors replace those of another file's component of the same role")
    follows: bool = Field(False, description="a companion of the transformer: beside 'dit2' its role ends in 2 as well")
    dtype: Literal["float32"] | None = Field(None, description="precision that it always runs in")
    loader: Literal["tensors", "folder"] = Field(
        "tensors", description="folder: the network's own `from_checkpoint` reads its numbers from the folder"
    )

    @field_validator("rename", mode="before")
    @classmethod
    def _rules(cls, rules: list[dict[str, str]]) -> tuple[Rename, ...]:
        return tuple(Rename(**rule) for rule in rules)

    @model_validator(mode="after")
    def _overlays_are_tensors(self) -> ComponentSpec:
        if self.overlay and self.loader == "folder":
            raise ValueError("an overlay lies over the tensors of its base: leave out 'loader'")
        return self

    @property
    def is_base(self) -> bool:
        """Whether it is a whole network, and no change to one."""
        return self.network is not None and not self.overlay

    def network_name(self, file_name: str) -> str:
        return rename(file_name, self.rename)

    def file_name(self, network_name: str) -> str:
        return undo(network_name, self.rename)


class Row(BaseModel):
    """One known checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    hash: str | None = Field(None, pattern=r"^[0-9a-f]{32}$", description="md5 of names and shapes")
    match: tuple[str, ...] = Field((), description="patterns of names that must all occur in the file")
    partial: bool = Field(
        False, description="for files that no other row fits; components of which a file has nothing are left out"
    )
    ignore: tuple[str, ...] = Field((), description="patterns of names that no component needs")
    model_type: str | None = Field(None, description="`model_type` in the config.json of a folder")
    lora: bool = Field(False, description="for files with names that end as those of LoRA files do")
    repo: str = Field("", description="where it is published")
    file: str = Field("", description="its file or files there")
    also: tuple[str, ...] = Field((), description="further `repo:file` with the same names and shapes")
    note: str = ""
    num_keys: int | None = Field(None, gt=0)
    num_params: int | None = Field(None, gt=0)
    components: dict[str, ComponentSpec] = Field(min_length=1)
    settings: dict[str, dict[str, Any]] = Field({}, description="settings of units that suit this checkpoint")

    @model_validator(mode="after")
    def _one_way_to_recognise(self) -> Row:
        if [bool(self.hash), bool(self.match), bool(self.model_type), self.lora].count(True) != 1:
            raise ValueError("give exactly one of 'hash', 'match', 'model_type' and 'lora'")
        return self

    @property
    def is_delta(self) -> bool:
        """Whether it changes networks of other files."""
        return any(not spec.is_base for spec in self.components.values())

    def owner(self, name: str) -> str | None:
        """The role of the first component that a name of the file belongs to."""
        return next((role for role, spec in self.components.items() if matches(name, spec.keys)), None)

    def unclaimed(self, names: Iterable[str]) -> list[str]:
        """The names that belong to no component and are not declared superfluous."""
        return [name for name in names if self.owner(name) is None and not matches(name, self.ignore)]

    def unmet(self, names: Iterable[str]) -> list[str]:
        """The required patterns that no name fits."""
        names = set(names)
        return [pattern for pattern in self.match if not occurs(pattern, names)]

    def is_met(self, names: Collection[str]) -> bool:
        """Whether it is recognised by patterns, and a name fits each of them."""
        return bool(self.match) and all(occurs(pattern, names) for pattern in self.match)

    def claims(self, names: Iterable[str]) -> bool:
        """Whether every name belongs to a component or is declared superfluous."""
        return all(self.owner(name) is not None or matches(name, self.ignore) for name in names)


class Tuned(BaseModel):
    """Settings of units that suit a checkpoint, found out after its row was written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="of the checkpoint, for people")
    hash: str = Field(pattern=r"^[0-9a-f]{32}$", description="md5 of names and shapes of its tensors")
    note: str = ""
    settings: dict[str, dict[str, Any]] = Field(min_length=1, description="by unit; stronger than those of the row")


class Unsupported(BaseModel):
    """A published checkpoint whose network is not here, so that a refusal can name it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    hash: str = Field(pattern=r"^[0-9a-f]{32}$", description="md5 of names and shapes of its tensors")
    repo: str = Field(min_length=1, description="where it is published")
    why: str = Field(min_length=1, description="what it would need")


AnyRow = TypeVar("AnyRow", Row, Tuned, Unsupported, Container, Dialect)


@dataclass(frozen=True)
class Further:
    """What a table has beside checkpoints: rows about names, and checkpoints that are not supported."""

    containers: list[Container]
    dialects: list[Dialect]
    unsupported: list[Unsupported]


def read_table(table: Table) -> list[Row]:
    """All checkpoints of a table; the first fault is reported with the table, the row and the field."""
    return [_row(Row, table, number, row) for number, row in enumerate(_rows(table, "checkpoint"), start=1)]


def read_tuned(table: Table) -> list[Tuned]:
    """The further settings for checkpoints that a table has."""
    return [_row(Tuned, table, number, row) for number, row in enumerate(_rows(table, "tuned"), start=1)]


def read_further(table: Table) -> Further:
    """The containers, dialects and unsupported checkpoints that a table has."""
    return Further(
        [_row(Container, table, number, row) for number, row in enumerate(_rows(table, "container"), start=1)],
        [_row(Dialect, table, number, row) for number, row in enumerate(_rows(table, "dialect"), start=1)],
        [_row(Unsupported, table, number, row) for number, row in enumerate(_rows(table, "unsupported"), start=1)],
    )


def network_modules(rows: Iterable[Row]) -> frozenset[str]:
    """The Python modules of the networks that some rows name."""
    specs = (spec for row in rows for spec in row.components.values())
    return frozenset(spec.network.partition(":")[0] for spec in specs if spec.network is not None)


def check_networks(table: Table, modules: Collection[str]) -> None:
    """Raise CheckpointError if a table that was given by hand names code: networks are those of packages' tables."""
    for row in read_table(table):
        for role, spec in row.components.items():
            place = f"checkpoint table {table}, row '{row.name}': components.{role}.network"
            check_network(spec.network, modules, place)


def check_network(network: str | None, modules: Collection[str], place: str) -> None:
    """Raise CheckpointError for a network, named at some place that is data, in a module that is not among these."""
    module = (network or "").partition(":")[0]
    if network is not None and module not in modules:
        raise CheckpointError(
            f"{place} = '{network}': only packages that are installed can name code, and none names a network of "
            f"'{module}'; install the package that brings it"
        )


def _rows(table: Table, kind: str) -> list[dict[str, Any]]:
    try:
        content = parse_toml(table.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint table {table} cannot be read: {error}") from None
    if not content or not content.keys() <= KINDS or not all(map(_is_rows, content.values())):
        raise CheckpointError(f"checkpoint table {table} must consist of [[checkpoint]] rows")
    rows: list[dict[str, Any]] = content.get(kind, [])
    return rows


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _row(kind: type[AnyRow], table: Table, number: int, row: dict[str, Any]) -> AnyRow:
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "row"
        name = row.get("name", f"number {number}")
        raise CheckpointError(f"checkpoint table {table}, row '{name}': {where}: {fault['msg']}") from error
