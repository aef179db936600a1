"""Patterns over tensor names and the renaming of file names into network names.

In a pattern `*` stands for any text, `{a,b}` for one of several. A rename rule is a pair of patterns with the same `*`
and `{}` in the same order, which take over what those of the other side matched. So a rule reads in both directions:
`blocks.*.attn1.to_{q,k,v}.*` <-> `blocks.*.self_attn.{q,k,v}.*`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

_SPECIAL = re.compile(r"\*|\{[^{}]*\}")


def alternatives(group: str) -> list[str]:
    """`{a,b}` -> ["a", "b"]."""
    return group[1:-1].split(",")


def specials(pattern: str) -> list[str]:
    """The `*` and `{...}` of a pattern, in order."""
    return _SPECIAL.findall(pattern)


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern, one capture group for each of its specials."""
    expression, position = "", 0
    for match in _SPECIAL.finditer(pattern):
        expression += re.escape(pattern[position : match.start()])
        choices = "|".join(re.escape(choice) for choice in alternatives(match[0])) if match[0] != "*" else ".*"
        expression += f"({choices})"
        position = match.end()
    return re.compile(expression + re.escape(pattern[position:]))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits one of the patterns, as a whole."""
    return any(compiled(pattern).fullmatch(name) for pattern in patterns)


def occurs(pattern: str, names: Collection[str]) -> bool:
    """Whether one of the names fits a pattern; names are best a set or a mapping."""
    first = _SPECIAL.search(pattern)
    if first is None:
        return pattern in names
    start, expression = pattern[: first.start()], compiled(pattern)
    return any(name.startswith(start) and expression.fullmatch(name) for name in names)


@dataclass(frozen=True)
class Rename:
    """One rule: a name that fits `file` becomes the same with `network`'s text."""

    file: str
    network: str

    def __post_init__(self) -> None:
        ours, theirs = specials(self.file), specials(self.network)
        same_kinds = [a == "*" for a in ours] == [b == "*" for b in theirs]
        if not same_kinds or any(
            len(alternatives(a)) != len(alternatives(b)) for a, b in zip(ours, theirs, strict=True)
        ):
            raise ValueError(
                f"rename '{self.file}' -> '{self.network}': both sides need the same * and {{}} in the same order"
            )

    def apply(self, name: str) -> str:
        """The renamed name, or the same one if the rule does not concern it."""
        match = compiled(self.file).fullmatch(name)
        if match is None:
            return name
        result, position = "", 0
        for found, ours, theirs in zip(
            match.groups(), specials(self.file), _SPECIAL.finditer(self.network), strict=True
        ):
            result += self.network[position : theirs.start()]
            result += found if ours == "*" else alternatives(theirs[0])[alternatives(ours).index(found)]
            position = theirs.end()
        return result + self.network[position:]

    def inverse(self) -> Rename:
        return Rename(self.network, self.file)


def rename(name: str, rules: Sequence[Rename]) -> str:
    """A file's name turned into the network's: every rule in turn works on what the one before left."""
    for rule in rules:
        name = rule.apply(name)
    return name


def undo(name: str, rules: Sequence[Rename]) -> str:
    """A network's name turned back into the file's."""
    return rename(name, [rule.inverse() for rule in reversed(rules)])
