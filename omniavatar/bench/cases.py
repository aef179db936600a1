"""Which combinations of units are compared: listed one by one, or all that a matrix of units makes; suites of them.

title = "Caches"
units = ["default", "default+cfg-merge"]
[matrix]
units = ["teacache(threshold=0.1)", "teacache(threshold=0.2)", "smooth-borders"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from omniavatar.config import validated
from omniavatar.errors import InputError, nearest
from omniavatar.resources import data_folder
from omniavatar.values import parse_toml

MOST = 64
"""Combinations of one matrix."""
SUITES = "benchmarks/suites"


class Matrix(BaseModel):
    """All combinations of some units, each there or not; of several settings of one unit, one at a time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field("default", description="what all combinations begin with")
    units: tuple[str, ...] = Field((), description="terms such as 'teacache(threshold=0.2)'")

    def expressions(self) -> list[str]:
        """The base alone first, then with one unit, and so on. Raises InputError for none, or too many."""
        units = [unit.strip().removeprefix("+").strip() for unit in self.units]
        if not units or not all(units):
            raise InputError(f"the matrix of {self.base} has no units; name at least one, such as teacache")
        choices: dict[str, list[str]] = {}
        for unit in units:
            choices.setdefault(unit.partition("(")[0].strip(), [""]).append(f"+{unit}")
        chosen = sorted(product(*choices.values()), key=lambda terms: sum(map(bool, terms)))
        if len(chosen) > MOST:
            raise InputError(
                f"the matrix of {self.base} has {len(chosen)} combinations; take units out, {MOST} is most"
            )
        return [f"{self.base}{''.join(terms)}" for terms in chosen]


class Suite(BaseModel):
    """What a suite file may say; options of the command line win. See docs/benchmarks.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field("omni bench", description="heading of the report")
    description: str = Field("", description="what it is for, in a sentence or two")
    config: str | None = Field(None, description="configuration, as of omni run")
    units: tuple[str, ...] = Field((), description="plan expressions; the first combination is the reference")
    matrix: Matrix | None = Field(None, description="base and units, of which all combinations are made")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**40)], ...] = Field((42,), min_length=1, description="a video each")
    repeats: int = Field(3, ge=0, le=1000, description="timed videos for each combination and seed; 0: none")
    warmup: int = Field(1, ge=0, le=100, description="videos of each combination before that")
    size: str | None = Field(None, description="WIDTHxHEIGHT")
    seconds: float | None = Field(None, gt=0, description="length of a video")
    faces: bool = Field(False, description="a generated portrait for each seed, if a package brings them")
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings by unit, for all")

    def expressions(self) -> list[str]:
        """All plan expressions, in order. Raises InputError if there is none."""
        made = [*self.units, *(self.matrix.expressions() if self.matrix is not None else ())]
        if not made:
            raise InputError("there is no combination to measure; name some with --units, or a suite with --suite")
        return made


def read_suite(name: str) -> Suite:
    """The suite in the file of this name, or the packaged one such as "quick". Raises InputError."""
    path = find_suite(name)
    try:
        content = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the suite {path}: {error}") from None
    return validated(Suite, content, path)


def find_suite(name: str) -> Path:
    """The file of this name, or the packaged one."""
    path = Path(name)
    if path.is_file():
        return path
    packaged = {file.stem: file for file in data_folder(SUITES).glob("*.toml")}
    stem = path.name.removesuffix(".toml")
    if stem in packaged and path.parent in (Path(), Path(SUITES)):
        return packaged[stem]
    raise InputError(f"there is no suite {name}{nearest(stem, packaged)}")


def named(expressions: Sequence[str]) -> dict[str, str]:
    """Expressions by a name of their own: themselves, with a number behind one that comes again."""
    seen: Counter[str] = Counter()
    names = {}
    for text in expressions:
        expression = " ".join(text.split())
        seen[expression] += 1
        names[f"{expression} #{seen[expression]}" if seen[expression] > 1 else expression] = expression
    return names
