"""Other programs' names for the same networks, as tables: `[[container]]` and `[[dialect]]` rows.

A container says what stands in front of the names, such as `model.diffusion_model.`, and so which parts of a file are
a checkpoint each. A dialect says which names a program gives to the weights of a network, and how they become the
official ones, by which the `[[checkpoint]]` rows know it. Nothing is read but headers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from omniavatar.checkpoints.derived import cut_again, joined, reshaped, shaped_back, split
from omniavatar.checkpoints.headers import Header, TensorInfo
from omniavatar.checkpoints.names import Rename, alternatives, compiled, matches, occurs, specials
from omniavatar.errors import CheckpointError


class Container(BaseModel):
    """Prefixes of names. What lies under each of them is a checkpoint of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="what such a file is called in messages")
    prefixes: tuple[str, ...] = Field(min_length=1, description="beginnings of names, such as 'vae.'")
    choose: bool = Field(False, description="the parts are versions of one network: the first that is there is taken")
    beside: tuple[str, ...] = Field((), description="patterns of names outside of the prefixes, which are left out")

    def parts(self, names: Iterable[str]) -> list[str] | None:
        """The prefixes that occur, if every name has one or may be left out; None: it is no such file."""
        found: dict[str, int] = {}
        for name in names:
            prefix = next((prefix for prefix in self.prefixes if name.startswith(prefix)), None)
            if prefix is not None:
                found[prefix] = found.get(prefix, 0) + 1
            elif not matches(name, self.beside):
                return None
        return [prefix for prefix in self.prefixes if prefix in found] or None


@dataclass(frozen=True)
class Rule:
    """One rule from the names of a file to official ones, as a rename rule; further:

    join: what the last `{}` of `file` tells apart is joined along this dimension, in the order that it has there.
    split: the tensor is cut along this dimension into what the last `{}` of `network` tells apart.
    turned: the two sides of the matrix are exchanged. leading: so many sides of 1 come in front of the shape.
    """

    file: str
    network: str
    join: int | None = None
    split: int | None = None
    turned: bool = False
    leading: int = 0
    renames: tuple[Rename, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.join is not None and self.split is not None:
            raise ValueError(f"rule '{self.file}' joins and splits; one rule does one of both")
        pairs = [(self.file, self.network)]
        if self.join is not None:
            pairs = [(pattern, self.network) for pattern in told_apart(self.file)]
        elif self.split is not None:
            pairs = [(self.file, pattern) for pattern in told_apart(self.network)]
        object.__setattr__(self, "renames", tuple(Rename(file, network) for file, network in pairs))

    def apply(self, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """The tensors under the names that this rule gives them; what it does not concern stays."""
        result: dict[str, TensorInfo] = {}
        waiting: dict[str, dict[int, TensorInfo]] = defaultdict(dict)
        for name, info in tensors.items():
            for number, target in self._targets(name):
                if self.join is not None:
                    waiting[target][number] = info
                else:
                    put(result, target, self._changed(info, number))
            if not compiled(self.file).fullmatch(name):
                put(result, name, info)
        for target, parts in waiting.items():
            if len(parts) < len(self.renames):
                lacking = min(set(range(len(self.renames))) - parts.keys())
                raise CheckpointError(
                    f"{parts[min(parts)].file} lacks a part of '{target}': "
                    f"it has '{parts[min(parts)].name}' but none as {self.renames[lacking].file}"
                )
            put(result, target, joined([parts[number] for number in sorted(parts)], self.join or 0))
        return result

    def undo(self, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """The tensors under the names, and in the forms, that this rule gives others: the reverse of `apply`."""
        result: dict[str, TensorInfo] = {}
        waiting: dict[str, dict[int, TensorInfo]] = defaultdict(dict)
        for name, info in tensors.items():
            numbers = [number for number, rule in enumerate(self.renames) if compiled(rule.network).fullmatch(name)]
            if not numbers:
                put(result, name, info)
            elif self.join is not None:
                for rule, piece in zip(self.renames, cut_again(info, self.join, len(self.renames)), strict=True):
                    put(result, rule.inverse().apply(name), piece)
            elif self.split is not None:
                waiting[self.renames[numbers[0]].inverse().apply(name)][numbers[0]] = info
            else:
                is_shaped = self.turned or self.leading
                back = shaped_back(info, turned=self.turned, leading=self.leading) if is_shaped else info
                put(result, self.renames[0].inverse().apply(name), back)
        for target, parts in waiting.items():
            put(result, target, joined([parts[number] for number in sorted(parts)], self.split or 0))
        return result

    def _targets(self, name: str) -> Iterator[tuple[int, str]]:
        """The names that a name of the file becomes, each with the number of its part."""
        for number, rule in enumerate(self.renames):
            if compiled(rule.file).fullmatch(name):
                yield number, rule.apply(name)

    def _changed(self, info: TensorInfo, number: int) -> TensorInfo:
        if self.split is not None:
            info = split(info, self.split, len(self.renames))[number]
        if self.turned or self.leading:
            info = reshaped(info, turned=self.turned, leading=self.leading)
        return info


def told_apart(pattern: str) -> list[str]:
    """A pattern for each alternative of its last `{}`."""
    groups = [special for special in specials(pattern) if special != "*"]
    if not groups:
        raise ValueError(f"'{pattern}' has no {{}} that tells parts apart")
    before, _, after = pattern.rpartition(groups[-1])
    return [f"{before}{choice}{after}" for choice in alternatives(groups[-1])]


def put(tensors: dict[str, TensorInfo], name: str, info: TensorInfo) -> None:
    """Add a tensor; two that mean the same are an error."""
    if name in tensors:
        raise CheckpointError(f"{info.file}: '{tensors[name].name}' and '{info.name}' both mean '{name}'")
    tensors[name] = info


class Dialect(BaseModel):
    """The names that a program gives to the weights of a network."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str = Field(min_length=1)
    match: tuple[str, ...] = Field(min_length=1, description="patterns of names that must all occur in the file")
    ignore: tuple[str, ...] = Field((), description="patterns of names that no network needs")
    extras: dict[str, str] = Field({}, description="names of the file that are no weights: 'tokenizer' -> its name")
    rename: tuple[Rule, ...] = Field((), description="rules that make the names official, in this order")

    @field_validator("rename", mode="before")
    @classmethod
    def _rules(cls, rules: list[dict[str, Any]]) -> tuple[Rule, ...]:
        return tuple(Rule(**rule) for rule in rules)

    @model_validator(mode="after")
    def _known_extras(self) -> Dialect:
        if not self.extras.keys() <= {"tokenizer"}:
            raise ValueError(f"extras are {', '.join(self.extras)}; only 'tokenizer' is known")
        return self

    def fits(self, names: Collection[str]) -> bool:
        """Whether all required patterns occur among the names."""
        return all(occurs(pattern, names) for pattern in self.match)

    def foreign(self, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """Weights by official names under the names of this dialect."""
        result = dict(tensors)
        for rule in reversed(self.rename):
            if rule.network != "*":  # the others cut prefixes
                result = rule.undo(result)
        return result

    def names(self, name: str) -> bool:
        """Whether a rule is about an official name."""
        return any(compiled(one.network).fullmatch(name) for rule in self.rename for one in rule.renames)

    def official(self, header: Header) -> Header:
        """The header under official names. Raises CheckpointError for two names that mean one, or a part that lacks."""
        extras = {what: header.tensors[name] for what, name in self.extras.items() if name in header.tensors} or dict(
            header.extras
        )
        left_out = (*self.ignore, *self.extras.values())
        tensors = {name: info for name, info in header.tensors.items() if not matches(name, left_out)}
        for rule in self.rename:
            tensors = rule.apply(tensors)
        return renamed(header, tensors, extras)


def renamed(header: Header, tensors: Mapping[str, TensorInfo], extras: Mapping[str, Any]) -> Header:
    """A header of some of the tensors, under other names."""
    entries = {name: info.shape for name, info in tensors.items()}
    return replace(header, tensors=dict(tensors), entries=entries, extras=dict(extras))


@dataclass(frozen=True)
class Names:
    """All containers and dialects, in the order in which they are tried."""

    containers: tuple[Container, ...] = ()
    dialects: tuple[Dialect, ...] = ()

    def parts(self, header: Header, wanted: str | None = None) -> dict[str, Header]:
        """The checkpoints in a file, by the prefix of their names, each without it; nothing: it is no container.

        wanted: which of them is taken; the prefix without the dot at its end, and behind it what is wanted of that one.
        """
        for container in self.containers:
            prefixes = container.parts(header.tensors)
            if prefixes is None:
                continue
            fitting = [prefix for prefix in prefixes if f"{wanted}.".startswith(prefix)]
            if not fitting and wanted is not None and len(prefixes) > 1:
                there = ", ".join(prefix.removesuffix(".") for prefix in prefixes)
                raise CheckpointError(f"{header.files[0]} has no '{wanted}'; it holds {there}")
            prefixes = fitting or (prefixes[:1] if container.choose else prefixes)
            return {prefix: part(header, prefix) for prefix in prefixes}
        return {}

    def holds_several(self, text: bytes) -> bool:
        """Whether a header with this text may be of a file of several models."""
        several = (container.prefixes for container in self.containers if not container.choose)
        return any(sum(f'"{prefix}'.encode() in text for prefix in prefixes) > 1 for prefixes in several)

    def strays(self, header: Header) -> str:
        """What to say of a file of which most names, and not all, have the prefixes of a container; else nothing."""
        for container in self.containers:
            outside = [name for name in header.tensors if not name.startswith(container.prefixes)]
            outside = [name for name in outside if not matches(name, container.beside)]
            if outside and 2 * len(outside) < len(header.tensors):
                shown = ", ".join(name[:80] for name in outside[:3])
                return (
                    f"{header.files[0]} would be {container.name}, but {len(outside)} of its {len(header.tensors)} "
                    f"tensors are of something else: {shown}"
                )
        return ""

    def official(self, header: Header) -> Header | None:
        """The header under official names, if it is in a dialect."""
        dialect = next((dialect for dialect in self.dialects if dialect.fits(header.tensors)), None)
        return None if dialect is None else dialect.official(header)


def part(header: Header, prefix: str) -> Header:
    """What lies under a prefix."""
    tensors = {name.removeprefix(prefix): info for name, info in header.tensors.items() if name.startswith(prefix)}
    inner = renamed(header, tensors, header.extras)
    return replace(inner, prefix=header.prefix + prefix)


def rest(wanted: str | None, prefix: str) -> str | None:
    """What is still wanted of a part with this prefix."""
    if wanted is None or not f"{wanted}.".startswith(prefix):
        return wanted
    return wanted[len(prefix) :] or None
