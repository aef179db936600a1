"""Recognise checkpoints: `Registry.builtin().detect("Wan2.1_VAE.pth")` says which one it is and what it provides.

Only headers are read. The result is a `Detection`; loading.py and bundle.py take it from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omniavatar.checkpoints.dialects import Container, Dialect, Names, rest
from omniavatar.checkpoints.files import (
    Files,
    Source,
    check_index,
    check_shards,
    find_checkpoints,
    folder_groups,
    group_files,
)
from omniavatar.checkpoints.formats import Formats, TensorInfo
from omniavatar.checkpoints.formulas import Formulas, read_settings
from omniavatar.checkpoints.headers import BUILTIN_FORMATS, Header, read_header
from omniavatar.checkpoints.lora_names import is_lora, parsed
from omniavatar.checkpoints.names import matches
from omniavatar.checkpoints.nearest import Neighbours
from omniavatar.checkpoints.tables import (
    ComponentSpec,
    Row,
    Table,
    Tuned,
    Unsupported,
    read_further,
    read_table,
    read_tuned,
)
from omniavatar.errors import CheckpointError, parsing
from omniavatar.resources import registry_tables
from omniavatar.roles import companion_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TRANSFORMER = "dit"
SECOND_TRANSFORMER = "dit2"
"""What takes turns with it in models of two experts."""
MAX_PREFIXES = 4
"""Prefixes in front of each other."""
STEMS = ("model", "pytorch_model")
"""Beginnings of the names of the weights in Hugging Face folders."""
LORA = "lora"
"""The role of bare tensor sets, which change networks and are none."""
VerdictKind = Literal["known", "unknown", "damaged"]
LoraStrength = float | tuple[tuple[float, float, float], ...]
"""One for all steps, or (begin, end, strength) for ranges of them, as fractions of their number from 0 to 1."""


class UnknownCheckpoint(CheckpointError):
    """A sound file that no table knows."""


@dataclass(frozen=True)
class Component:
    """What one checkpoint provides for one role, found in actual files.

    `tensors` goes from the network's name of a tensor to where it lies; `config` and `constants` are without formulas;
    `target` is the role of the network that a LoRA changes, or of the transformer that the component goes with, and
    `is_named` whether somebody has said so; `strength` how strong that LoRA is; `extras` are what the files hold beside
    weights; `lacks`, of a part of a network: names without which it is no whole one, if it has nearly all.
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
    is_named: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict, repr=False)
    strength: LoraStrength = 1.0
    lacks: tuple[str, ...] = ()

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
        components = tuple(
            replace(part, role=moved_role(part.role, part.spec, role), target=role, is_named=True)
            for part in self.components
        )
        return replace(self, components=components)

    def with_strength(self, strength: LoraStrength) -> Detection:
        """The same with another strength of its LoRA. Raises CheckpointError if it has none."""
        if all(part.role != LORA for part in self.components):
            raise CheckpointError(f"{self.files[0]} is no LoRA ({self.row.name}), so it cannot have a strength")
        parts = (replace(part, strength=strength) if part.role == LORA else part for part in self.components)
        return replace(self, components=tuple(parts))


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
    formats: what reads the files; default: the built-in ones.
    """

    def __init__(
        self,
        tables: Iterable[Table],
        leave_out: Callable[[Table, CheckpointError], None] | None = None,
        formats: Formats = BUILTIN_FORMATS,
    ) -> None:
        self.formats = formats
        self._origins: dict[str, Table] = {}
        rows: list[Row] = []
        unsupported: list[Unsupported] = []
        containers: list[Container] = []
        dialects: list[Dialect] = []
        self._tuned: dict[str, list[Tuned]] = defaultdict(list)
        for table in tables:
            try:
                found, further = read_tuned(table), read_further(table)
                rows += self._claimed(table)
                for tuned in found:
                    self._tuned[tuned.hash].append(tuned)
                unsupported += further.unsupported
                containers += further.containers
                dialects += further.dialects
            except CheckpointError as error:
                if leave_out is None:
                    raise
                leave_out(table, error)
        self.rows = tuple(rows)
        self._by_hash = {row.hash: row for row in rows if row.hash}
        self._unsupported = {row.hash: row for row in unsupported}
        self.names = Names(tuple(containers), tuple(dialects))
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
        """Recognise every checkpoint that a source names: a folder can hold several, and so can a file.

        In a folder of several models, such as one of diffusers, the second transformer gets its role.
        """
        suffixes = self.formats.suffixes
        path, wanted = version(source) if isinstance(source, str | Path) else (None, None)
        if path is None or not path.is_dir():
            groups = find_checkpoints(source if path is None else path, suffixes)
            return [found for files in groups for found in self.detect_parts(files, wanted)]
        row = self._folder_row(path)
        if row is not None:
            return self.detect_parts(weights_of_folder(row, path, suffixes), wanted, row)
        detections: list[Detection] = []
        for folder, role, groups in folder_groups(path, suffixes):
            row = self._folder_row(folder)
            found = [one for files in groups for one in self.detect_parts(files, wanted, row)]
            detections += found if role is None else [one.with_role(role) for one in found]
        return detections

    def detect_parts(
        self, files: Files, wanted: str | None = None, row: Row | None = None, *, searching: bool = False
    ) -> list[Detection]:
        """Recognise the checkpoints in files that belong together.

        wanted: which version is taken where the file holds several. row: what the folder says they are. searching: do
        not say of unknown ones which known one they resemble, which takes its time, and pass over them in a file that
        holds others too.
        """
        check_shards(files)
        check_index(files)
        header = read_header(files, self.formats)
        if row is not None:
            return [detection(row, self.names.official(header) or header, files[0].parent)]
        return [
            detection(self._tuned_row(row, part), part, files[0].parent, self._lacks(part) if row.partial else ())
            for row, part in self.readings(header, wanted, searching=searching)
        ]

    def _lacks(self, header: Header) -> tuple[str, ...]:
        """What a part of a network lacks of the patterns of the whole one that it comes nearest to."""
        whole = [row for row in self.rows if row.match and not row.is_delta and row.claims(header.tensors)]
        lacks = [row.unmet(header.tensors) for row in whole]
        near = [unmet for unmet, row in zip(lacks, whole, strict=True) if 2 * len(unmet) < len(row.match)]
        return min((tuple(unmet) for unmet in near), key=len, default=())

    def official(self, header: Header) -> Header:
        """The header under official names, without a prefix; one that is so already, or of several models, as it is."""
        for _ in range(MAX_PREFIXES):
            official = self.names.official(header)
            if official is not None:
                return official
            parts = list(self.names.parts(header).values())
            if len(parts) != 1:
                break
            header = parts[0]
        return header

    def folder_files(self, folder: Path) -> tuple[Row, Files] | None:
        """What a folder is that is one model in the form of transformers, and its files; None if it is no such one."""
        row = self._folder_row(folder)
        return None if row is None else (row, weights_of_folder(row, folder, self.formats.suffixes))

    def readings(
        self, header: Header, wanted: str | None = None, depth: int = 0, *, searching: bool = False
    ) -> list[tuple[Row, Header]]:
        """The rows of what lies in files: as it stands, under official names, or in parts with prefixes.

        Each comes with its part of the header, under the names that the row knows. An unknown part is an error.
        """
        row, known = self._row(header), header
        official = self.names.official(header) if row is None else None
        if official is not None:
            row, known = self._row(official), official
        if row is not None:
            if wanted is not None:
                raise CheckpointError(f"{header.files[0]} has no '{wanted}'; it holds {row.name}")
            return [(row, known)]
        parts = self.names.parts(header, wanted) if depth < MAX_PREFIXES else {}
        if not parts:
            unknown = header.files[0].name
            if not header.tensors:
                unknown = f"{header.files[0]} holds no tensors; download it again"
            elif not searching:
                unknown = self.names.strays(header) or self._neighbours.explain(official or header)
            raise UnknownCheckpoint(unknown)
        found: list[tuple[Row, Header]] = []
        for prefix, part in parts.items():
            try:
                found += self.readings(part, rest(wanted, prefix), depth + 1, searching=searching)
            except UnknownCheckpoint:
                if not searching or len(parts) == 1:
                    raise
        return found

    def _tuned_row(self, row: Row, header: Header) -> Row:
        """The row with what later tables say about files with this header."""
        settings = {unit: dict(values) for unit, values in row.settings.items()}
        for tuned in self._tuned.get(header.hash, ()):
            for unit, values in tuned.settings.items():
                settings.setdefault(unit, {}).update(values)
        return row if settings == row.settings else row.model_copy(update={"settings": settings})

    def recognise(self, header: Header) -> Row:
        """The row of a header as it stands; an unknown one is an error that names the nearest known checkpoint."""
        row = self._row(header)
        if row is None:
            raise UnknownCheckpoint(self._neighbours.explain(header))
        return row

    def _row(self, header: Header) -> Row | None:
        """The row of a header as it stands. Raises CheckpointError for what is known and not supported."""
        row = self._by_hash.get(header.hash)
        if row is not None:
            return row
        known = self._unsupported.get(header.hash)
        if known is not None:
            raise CheckpointError(
                f"{header.files[0]} is {known.name} ({known.repo}), which is not supported: {known.why}"
            )
        names = header.tensors
        fitting = [row for row in self.rows if row.is_met(names) and row.claims(names)]
        whole = [row for row in fitting if not row.partial]
        others = [name for name in names if not parsed(name)]
        if not whole and is_lora(names) and not (others and (fitting or self._is_part_of_delta(others))):
            fitting = [row for row in self.rows if row.lora]
        else:
            fitting = whole or fitting
        if len(fitting) > 1:
            several = " and ".join(f"'{row.name}'" for row in fitting)
            raise CheckpointError(f"{header.files[0]} fits the patterns of {several}; make one of them stricter")
        return fitting[0] if fitting else None

    def _is_part_of_delta(self, names: Iterable[str]) -> bool:
        """Whether some of these are whole weights that a known delta brings, such as OmniAvatar's audio layers."""
        patterns = [pattern for row in self.rows if row.is_delta and not row.partial for pattern in row.match]
        return any(matches(name, patterns) for name in names)

    def scan(self, folder: Path, seen: set[Path] | None = None) -> Iterator[Verdict]:
        """Recognise everything in and below a folder that looks like a model by its name.

        Links are followed, and what is bad ends nothing. seen: folders where the scan has been.
        """
        seen = set() if seen is None else seen
        if folder.resolve() in seen:
            return
        seen.add(folder.resolve())
        entries: list[Path] = []
        suffixes = self.formats.suffixes
        try:
            with examining(folder):
                entries = sorted(folder.iterdir())
                sources = self._sources(folder)
        except CheckpointError as error:  # such as a bad index of shards, which must not hide other files
            yield Verdict(folder, None, error)
            sources = [*group_files((path for path in entries if path.suffix in suffixes and path.is_file()), suffixes)]
        for source in sources:
            path = source[0] if isinstance(source, tuple) else source
            try:
                with examining(path):
                    found = self.detect_all(source)
                yield from (Verdict(path, detection, None) for detection in found)
            except CheckpointError as error:
                yield Verdict(path, None, error)
        if sources != [folder]:
            for path in filter(Path.is_dir, entries):
                yield from self.scan(path, seen)

    def _sources(self, folder: Path) -> list[Path | Files]:
        """The folder itself if it is one model, else the checkpoints among its files."""
        return [folder] if self._folder_row(folder) else [*group_files(folder.iterdir(), self.formats.suffixes)]

    def _folder_row(self, folder: Path) -> Row | None:
        """The row of a Hugging Face folder, if it is one whose architecture has a row."""
        if not folder.is_dir():
            return None
        model_type = read_settings(folder / "config.json").get("model_type")
        return self._by_type.get(model_type) if isinstance(model_type, str) else None


def examining(path: Path) -> AbstractContextManager[None]:
    """Any failure inside a with-block is one about this file or folder."""
    return parsing(lambda reason: CheckpointError(f"{path} cannot be examined ({reason}); download it again"))


def detection(row: Row, header: Header, folder: Path, lacks: tuple[str, ...] = ()) -> Detection:
    """Split the tensors of a recognised checkpoint among the components of its row. lacks: see `Component`."""
    roles = {row.owner(name) for name in header.tensors} if row.partial else row.components
    parts = (_component(row, role, header, folder, lacks) for role in row.components if role in roles)
    return Detection(row, header, tuple(parts))


def _component(row: Row, role: str, header: Header, folder: Path, lacks: tuple[str, ...]) -> Component:
    spec, formulas = row.components[role], Formulas(header, folder, row.name)
    return Component(
        role=role,
        row=row,
        spec=spec,
        files=header.files,
        folder=folder,
        config={key: value for key, value in formulas.evaluate(spec.config).items() if value is not None},
        constants=formulas.evaluate(spec.constants),
        tensors=_renamed(row, role, header),
        extras={**header.metadata, **header.extras},
        lacks=lacks,
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


def moved_role(name: str, spec: ComponentSpec, role: str | None) -> str:
    """The role of what a row provides as `name` where its transformer has another role; None: it has its own."""
    moves = role is not None and (name == TRANSFORMER or spec.follows)
    return companion_of(name, TRANSFORMER, str(role)) if moves else name


def version(source: str | Path) -> tuple[Path, str | None]:
    """The path of a source, and which version or model in it is wanted: `file.pt::generator`, `a.safetensors::vae`."""
    path = Path(source).expanduser()
    name, separator, wanted = path.name.rpartition("::")
    if not separator or path.exists():
        return path, None
    return path.with_name(name), wanted


def weights_of_folder(row: Row, folder: Path, suffixes: Collection[str]) -> Files:
    """The files of a Hugging Face folder. Raises CheckpointError if it has none, or those of several models."""
    groups = [files for files in group_files(sorted(folder.iterdir()), suffixes) if files[0].stem.startswith(STEMS)]
    if len(groups) != 1:
        raise CheckpointError(
            f"{folder} has the config.json of a {row.name} but no model.safetensors or pytorch_model.bin"
        )
    return groups[0]
