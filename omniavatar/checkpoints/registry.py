"""Recognise checkpoints: `Registry.builtin().detect("Wan2.1_VAE.pth")` says which one it is and what it provides.

Only headers are read. The result is a `Detection`; loading.py and bundle.py take it from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omniavatar.checkpoints.files import Files, Source, check_shards, find_checkpoints, group_files
from omniavatar.checkpoints.formulas import Formulas, read_settings
from omniavatar.checkpoints.headers import SUFFIXES, Header, TensorInfo, read_header
from omniavatar.checkpoints.nearest import Neighbours
from omniavatar.checkpoints.tables import ComponentSpec, Row, Table, Tuned, read_table, read_tuned
from omniavatar.errors import CheckpointError, parsing
from omniavatar.resources import registry_tables

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TRANSFORMER = "dit"
VerdictKind = Literal["known", "unknown", "damaged"]


class UnknownCheckpoint(CheckpointError):
    """A sound file that no table knows."""


@dataclass(frozen=True)
class Component:
    """What one checkpoint provides for one role, found in actual files.

    `tensors` goes from the network's name of a tensor to where it lies; `config` and `constants` are without formulas;
    `target` is the role of the transformer that a LoRA changes.
    """

    role: str
    row: Row
    spec: ComponentSpec
    files: Files
    folder: Path
    config: Mapping[str, Any]
    constants: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    target: str = TRANSFORMER

    @property
    def num_params(self) -> int:
        return sum(tensor.numel for tensor in self.tensors.values())

    def state(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Read all its tensors, under the network's names; `dtype` None keeps the file's."""
        from omniavatar.checkpoints.loading import read_tensors

        return dict(read_tensors(self.tensors, device=device, dtype=dtype))


@dataclass(frozen=True)
class Detection:
    """A recognised checkpoint: its row, its header and what it provides."""

    row: Row
    header: Header
    components: tuple[Component, ...]

    @property
    def files(self) -> Files:
        return self.header.files

    def with_role(self, role: str) -> Detection:
        """The same with its transformer in another role, or changing the transformer of that role.

        What follows the transformer goes along: `vace` to `vace2` where `dit` goes to `dit2`.
        """
        number = role.removeprefix(TRANSFORMER)

        def moved(component: Component) -> str:
            if component.role == TRANSFORMER:
                return role
            return component.role + number if component.spec.follows else component.role

        components = tuple(replace(part, role=moved(part), target=role) for part in self.components)
        return replace(self, components=components)


@dataclass(frozen=True)
class Verdict:
    """What a scan found at one place: a checkpoint, or why it is none."""

    path: Path
    detection: Detection | None
    error: CheckpointError | None

    @property
    def kind(self) -> VerdictKind:
        if self.error is None:
            return "known"
        return "unknown" if isinstance(self.error, UnknownCheckpoint) else "damaged"


class Registry:
    """All known checkpoints, from the tables of this package and of plugins.

    leave_out: what to do about a table that cannot be read or claims what another one has; default: raise the error.
    """

    def __init__(
        self, tables: Iterable[Table], leave_out: Callable[[Table, CheckpointError], None] | None = None
    ) -> None:
        self._origins: dict[str, Table] = {}
        rows: list[Row] = []
        self._tuned: dict[str, list[Tuned]] = defaultdict(list)
        for table in tables:
            try:
                found = read_tuned(table)
                rows += self._claimed(table)
                for tuned in found:
                    self._tuned[tuned.hash].append(tuned)
            except CheckpointError as error:
                if leave_out is None:
                    raise
                leave_out(table, error)
        self.rows = tuple(rows)
        self._by_hash = {row.hash: row for row in rows if row.hash}
        self._by_type = {row.model_type: row for row in rows if row.model_type}
        self._neighbours = Neighbours(tuple(row for row in rows if not row.partial))

    @classmethod
    def builtin(cls, extra_tables: Iterable[Table] = ()) -> Registry:
        """The tables in `registry/`, then those of plugins."""
        return cls([*registry_tables(), *extra_tables])

    def origin(self, row: Row) -> Table:
        """The table that has a row."""
        return self._origins[f"name '{row.name}'"]

    def _claimed(self, table: Table) -> list[Row]:
        """The rows of a table. Each name, hash and model type belongs to one row of all tables only."""
        rows, claims = read_table(table), dict(self._origins)
        for row in rows:
            for key in ("name", "hash", "model_type"):
                value = getattr(row, key)
                claim = f"{key} '{value}'"
                if value is None:
                    continue
                if claim in claims:
                    raise CheckpointError(
                        f"checkpoint tables {claims[claim]} and {table} both have a row with the {claim}"
                    )
                claims[claim] = table
        self._origins = claims
        return rows

    def detect(self, source: Source) -> Detection:
        """Recognise the one checkpoint that a source names."""
        detections = self.detect_all(source)
        if len(detections) > 1:
            names = ", ".join(f"{detection.files[0].name} ({detection.row.name})" for detection in detections)
            raise CheckpointError(f"{source} holds several checkpoints: {names}; name one of them")
        return detections[0]

    def detect_all(self, source: Source) -> list[Detection]:
        """Recognise every checkpoint that a source names: a folder can hold several."""
        if isinstance(source, str | Path):
            row = self._folder_row(Path(source).expanduser())
            if row is not None:
                return [_folder_detection(row, Path(source).expanduser())]
        return [self.detect_files(files) for files in find_checkpoints(source)]

    def detect_files(self, files: Files) -> Detection:
        """Recognise the checkpoint that consists of exactly these files."""
        check_shards(files)
        header = read_header(files)
        return detection(self._tuned_row(self.recognise(header), header), header, files[0].parent)

    def _tuned_row(self, row: Row, header: Header) -> Row:
        """The row with what later tables say about files with this header."""
        settings = {unit: dict(values) for unit, values in row.settings.items()}
        for tuned in self._tuned.get(header.hash, ()):
            for unit, values in tuned.settings.items():
                settings.setdefault(unit, {}).update(values)
        return row if settings == row.settings else row.model_copy(update={"settings": settings})

    def recognise(self, header: Header) -> Row:
        """The row of a header; an unknown one is an error that names the nearest known checkpoint."""
        row = self._by_hash.get(header.hash)
        if row is not None:
            return row
        fitting = [
            row
            for row in self.rows
            if row.match and not row.unmet(header.tensors) and not row.unclaimed(header.tensors)
        ]
        fitting = [row for row in fitting if not row.partial] or fitting
        if len(fitting) > 1:
            names = " and ".join(f"'{row.name}'" for row in fitting)
            raise CheckpointError(f"{header.files[0]} fits the patterns of {names}; make one of them stricter")
        if not fitting:
            raise UnknownCheckpoint(self._neighbours.explain(header))
        return fitting[0]

    def scan(self, folder: Path, seen: set[Path] | None = None) -> Iterator[Verdict]:
        """Recognise everything in and below a folder that looks like a model by its name.

        Links are followed, and what is bad ends nothing. seen: folders where the scan has been.
        """
        seen = set() if seen is None else seen
        if folder.resolve() in seen:
            return
        seen.add(folder.resolve())
        entries: list[Path] = []
        try:
            with examining(folder):
                entries = sorted(folder.iterdir())
                sources = self._sources(folder)
        except CheckpointError as error:  # such as a bad index of shards, which must not hide other files
            yield Verdict(folder, None, error)
            sources = [*group_files(path for path in entries if path.suffix in SUFFIXES)]
        for source in sources:
            path = source[0] if isinstance(source, tuple) else source
            try:
                with examining(path):
                    yield Verdict(path, self.detect(source), None)
            except CheckpointError as error:
                yield Verdict(path, None, error)
        if sources != [folder]:
            for path in filter(Path.is_dir, entries):
                yield from self.scan(path, seen)

    def _sources(self, folder: Path) -> list[Path | Files]:
        """The folder itself if it is one model, else the checkpoints among its files."""
        return [folder] if self._folder_row(folder) else [*group_files(folder.iterdir())]

    def _folder_row(self, folder: Path) -> Row | None:
        """The row of a Hugging Face folder, if it is one whose architecture has a row."""
        if not folder.is_dir():
            return None
        model_type = read_settings(folder / "config.json").get("model_type")
        return self._by_type.get(model_type) if isinstance(model_type, str) else None


def examining(path: Path) -> AbstractContextManager[None]:
    """Any failure inside a with-block is one about this file or folder."""
    return parsing(lambda reason: CheckpointError(f"{path} cannot be examined ({reason}); download it again"))


def detection(row: Row, header: Header, folder: Path) -> Detection:
    """Split the tensors of a recognised checkpoint among the components of its row."""
    formulas = Formulas(header, folder)
    roles = {row.owner(name) for name in header.tensors} if row.partial else row.components
    return Detection(
        row, header, tuple(_component(row, role, header, formulas) for role in row.components if role in roles)
    )


def _component(row: Row, role: str, header: Header, formulas: Formulas) -> Component:
    spec = row.components[role]
    return Component(
        role=role,
        row=row,
        spec=spec,
        files=header.files,
        folder=formulas.folder,
        config=formulas.evaluate(spec.config),
        constants=formulas.evaluate(spec.constants),
        tensors=_renamed(row, role, header),
    )


def _renamed(row: Row, role: str, header: Header) -> dict[str, TensorInfo]:
    """The tensors of one role under the network's names."""
    tensors: dict[str, TensorInfo] = {}
    for name, tensor in header.tensors.items():
        if row.owner(name) != role:
            continue
        target = row.components[role].network_name(name)
        if target in tensors:
            raise CheckpointError(
                f"{tensor.file}: '{tensors[target].name}' and '{name}' both mean '{target}' of {row.name}"
            )
        tensors[target] = tensor
    return tensors


def _folder_detection(row: Row, folder: Path) -> Detection:
    """A Hugging Face folder: its weights in one of the usual files."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return detection(row, read_header([folder / name]), folder)
    raise CheckpointError(f"{folder} has the config.json of a {row.name} but no model.safetensors or pytorch_model.bin")
