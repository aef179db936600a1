"""What to say of a file that no table knows: which known checkpoint it resembles most, and where it differs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from omniavatar.checkpoints.formulas import Formulas
from omniavatar.checkpoints.headers import Header
from omniavatar.checkpoints.tables import Row
from omniavatar.errors import CheckpointError, few

MAX_COMPARED = 10_000
"""Tensors of a file that is compared; known ones have a third of that."""
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Difference:
    """How the names and shapes in a file differ from those of a known checkpoint."""

    row: Row
    matching: int
    known: int
    similarity: float
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    other_shape: Sequence[str] = ()

    def __str__(self) -> str:
        lists = (("missing", self.missing), ("unexpected", self.unexpected), ("other shape", self.other_shape))
        differences = "; ".join(f"{title}: {few(names)}" for title, names in lists if names)
        return f"nearest is '{self.row.name}', of whose {self.known} keys {self.matching} match; {differences}"


@dataclass
class Neighbours:
    """The rows of a registry as points to compare an unknown file with."""

    rows: tuple[Row, ...]

    def explain(self, header: Header) -> str:
        """One line about an unknown checkpoint."""
        what = f"{header.files[0]} is no known checkpoint ({len(header.tensors)} tensors, hash {header.hash})"
        nearest = self.nearest(header) if len(header.tensors) <= MAX_COMPARED else None
        if nearest is None:
            return f"{what} and resembles none; 'omni models list' shows what is known"
        return f"{what}; {nearest}"

    def nearest(self, header: Header) -> Difference | None:
        """The most similar row, if it shares anything at all."""
        differences = [difference for row in self.rows if (difference := self._difference(row, header)) is not None]
        best = max(differences, key=lambda difference: difference.similarity, default=None)
        return best if best is not None and best.similarity > 0 else None

    def _difference(self, row: Row, header: Header) -> Difference | None:
        if row.match:
            return pattern_difference(row, header.tensors)
        known = self._known.get(row.name)
        found = {name: tensor.shape for name, tensor in header.tensors.items()}
        return shape_difference(row, known, found) if known and found else None

    @cached_property
    def _known(self) -> dict[str, Shapes]:
        """Names and shapes of the rows that are recognised by hash; one whose network is not installed is left out."""
        known: dict[str, Shapes] = {}
        for row in self.rows:
            if row.hash:
                try:
                    known[row.name] = expected_shapes(row)
                except CheckpointError:
                    continue
        return known


def expected_shapes(row: Row) -> dict[str, tuple[int, ...]]:
    """What a file of this row contains, by building its networks on the meta device and undoing the renames."""
    from omniavatar.checkpoints.loading import build_on_meta

    shapes: dict[str, tuple[int, ...]] = {}
    no_file = Formulas(Header((), {}, {}), None)
    for spec in row.components.values():
        if not spec.is_base:
            continue
        network = build_on_meta(str(spec.network), no_file.evaluate(spec.config))
        shapes |= {spec.file_name(name): tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return shapes


def shape_difference(row: Row, known: Shapes, found: Shapes) -> Difference:
    """Compare with a row whose names and shapes are known."""
    shared = known.keys() & found.keys()
    equal = {name for name in shared if known[name] == found[name]}
    union = len(known.keys() | found.keys())
    return Difference(
        row,
        matching=len(equal),
        known=len(known),
        similarity=(len(shared) + len(equal)) / (2 * union),
        missing=sorted(known.keys() - found.keys()),
        unexpected=sorted(found.keys() - known.keys()),
        other_shape=[f"{name} {_by(found[name])} (known {_by(known[name])})" for name in sorted(shared - equal)],
    )


def pattern_difference(row: Row, names: Collection[str]) -> Difference | None:
    """Compare with a row that is recognised by patterns; half the weight of exact names."""
    unmet, unclaimed = row.unmet(names), row.unclaimed(names)
    if len(unmet) == len(row.match):
        return None
    met = 1 - len(unmet) / len(row.match)
    claimed = len(names) - len(unclaimed)
    return Difference(
        row,
        matching=claimed,
        known=len(names) + len(unmet),
        similarity=met * claimed / (2 * len(names)),
        missing=unmet,
        unexpected=unclaimed,
    )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape) or "scalar"
