"""Folders full of models, as people have them: what lies in them, and which of it serves a need.

    library = Library([Path("ComfyUI/models"), Path("pretrained_models")], registry)
    for model in library.serving(need, precision="bfloat16"):   # best first
        print(model.source, model.row.name)

A folder can be a ComfyUI installation or its `models`, the cache of Hugging Face, that of Wan2GP, or any other tree.
Only headers are read, of files that may serve by name, size and the words in their headers; what was read of a file is
remembered as long as it does not change. Nothing is copied.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from omniavatar.checkpoints.files import Files, group_files
from omniavatar.checkpoints.formats import BITS
from omniavatar.checkpoints.names import compiled, specials
from omniavatar.checkpoints.registry import Detection, Registry, examining
from omniavatar.checkpoints.tables import Row
from omniavatar.errors import CheckpointError
from omniavatar.values import LONGEST, parse_yaml

MOST = 200_000
"""Files and folders of one tree that are looked at."""
DEEPEST = 24
"""Folders inside each other."""
REPOSITORY = "models--"
"""How the folder of a repository in the cache of Hugging Face begins."""
SKIPPED = frozenset(
    (
        *("node_modules", "__pycache__", "site-packages", "venv", "custom_nodes", "python_embeded", "blobs"),
        *("datasets", "embeddings", "upscale_models", "controlnet", "vae_approx", "frame_interpolation"),
        *("hypernetworks", "style_models", "photomaker", "gligen", "output", "outputs"),
    )
)
"""Folders where no model of ours lies; the blobs of a Hugging Face cache have their names in its snapshots."""
LEAST_BITS = 1.5
MOST_BITS = 40
"""Bits of a number in the smallest and the largest file of a network."""
INSIDE = "inside:"
"""How something begins that a file holds itself."""
LONGEST_HEADER = 2**23
"""Bytes of a header that is looked through before it is parsed; that of a 14B transformer has a sixtieth of these."""
LORA = b"lora_"
Stamps = tuple[tuple[str, int, int], ...]
"""Path, size and time of files."""
COMFY_PATHS = "extra_model_paths.yaml"
WAN2GP_SETTINGS = "wgp_config.json"


class Need(BaseModel):
    """Which checkpoints serve for something, by what they hold and, where that does not tell them apart, by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: tuple[str, ...] = Field(description="names in the checkpoint tables, or patterns of them", min_length=1)
    config: dict[str, Any] = Field({}, description="numbers that one of its networks must have, such as dim: 1536")
    named: tuple[str, ...] = Field((), description="patterns, one of which the path fits; case does not count")
    not_named: tuple[str, ...] = Field((), description="patterns none of which the path fits")
    instead: dict[str, tuple[str, ...]] = Field(
        {}, description="what does in place of something beside it: paths from its folder, or inside:tokenizer"
    )

    def wants(self, row: Row) -> bool:
        """Whether checkpoints of a row may serve."""
        return any(fnmatchcase(row.name, pattern) for pattern in self.rows)

    def is_named(self, path: str) -> bool:
        """Whether a file of this path may serve."""
        path = path.lower()
        is_one = not self.named or any(fnmatchcase(path, pattern.lower()) for pattern in self.named)
        return is_one and not any(fnmatchcase(path, pattern.lower()) for pattern in self.not_named)

    def holds(self, model: Model) -> bool:
        """Whether a checkpoint has what is needed; its name is not looked at."""
        networks = model.networks
        return self.wants(model.row) and all(
            any(network.get(key) == value for network in networks) for key, value in self.config.items()
        )


@dataclass(frozen=True)
class Model:
    """A recognised checkpoint in a tree.

    root: the tree. folder: of a model that is opened as a folder, because its configuration lies there. networks: the
    numbers of each. dtype: in which most of it is stored. bits: of a number of that dtype, on average. part: what it is
    called in a file of several models. extras: what its files hold that is no weight, such as a "tokenizer".
    """

    files: Files
    root: Path
    row: Row
    folder: Path | None
    networks: tuple[Mapping[str, Any], ...] = field(repr=False)
    dtype: str
    bits: float
    nbytes: int
    part: str = ""
    extras: frozenset[str] = frozenset()

    @property
    def source(self) -> str | tuple[str, ...]:
        """What to open: one path, maybe with the model in it (`aio.safetensors::vae`), or the shards."""
        if self.folder is not None:
            return str(self.folder)
        if len(self.files) > 1:
            return tuple(map(str, self.files))
        return f"{self.files[0]}::{self.part}" if self.part else str(self.files[0])

    @property
    def place(self) -> Path:
        """The folder, the file, maybe with the model in it, or the first shard."""
        return Path(self.source) if isinstance(self.source, str) else self.files[0]

    def has(self, what: str) -> bool:
        """Whether something that does in place of what belongs beside it is there (see `Need.instead`)."""
        inside = what.removeprefix(INSIDE)
        return inside in self.extras if inside != what else (self.files[0].parent / what).exists()

    @property
    def name(self) -> str:
        """Its path within the tree."""
        return within(self.place, self.root)


@dataclass(frozen=True)
class Candidate:
    """Files that may be a checkpoint. folder, row: they are this model, in the form of Hugging Face's transformers."""

    files: Files
    folder: Path | None = None
    row: Row | None = None

    @property
    def place(self) -> Path:
        return self.folder or self.files[0]


class Library:
    """The models below some folders, in the order of these.

    tell: takes a line about a tree that cannot be searched to its end.
    """

    def __init__(
        self, folders: Iterable[Path], registry: Registry, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self.folders = tuple(dict.fromkeys(folder.absolute() for folder in folders))
        self.registry = registry
        self.tell = tell
        self._read: dict[Stamps, list[Model]] = {}
        self._listed: dict[Path, list[tuple[Path, list[Path]]]] = {}
        self._there: dict[Path, list[Candidate]] = {}
        self._ruled_out: dict[tuple[Stamps, tuple[str, ...]], bool] = {}
        self._several: dict[Stamps, bool] = {}

    def models(self) -> Iterator[Model]:
        """Every recognised checkpoint."""
        for root in self.folders:
            for candidate in self._candidates(root):
                yield from self._models(candidate, root)

    def serving(self, need: Need, precision: str = "bfloat16", *, by_name: bool = True) -> list[Model]:
        """The checkpoints that serve a need, best first: by the order of the folders, then by precision.

        precision: torch's name of the dtype that is asked for; at least as precise ones come first, then the nearest.
        by_name: without it, what has a name that does not suit is among them.
        """
        found: list[Model] = []
        least, most = self._sizes(need)
        for root in self.folders:
            here = [
                model
                for candidate in self._candidates(root)
                if (not by_name or need.is_named(f"{root.name}/{within(candidate.place, root)}"))
                and (least <= sum(map(size_of, candidate.files)) <= most or self._holds_several(candidate))
                and self._may_serve(candidate, need)
                for model in self._models(candidate, root)
                if need.holds(model)
            ]
            found += sorted(here, key=lambda model: nearness(model, precision))
        return found

    def beside(self, tail: str) -> Path | None:
        """The folder below which a path such as "google/umt5-xxl" lies, the first of all."""
        for root in self.folders:
            for folder, _ in self._list(root):
                if (folder / tail).exists():
                    return folder
        return None

    def _sizes(self, need: Need) -> tuple[float, float]:
        """Bytes that a checkpoint of these rows has at least and at most."""
        numbers = [row.num_params for row in self.registry.rows if need.wants(row)]
        sizes = [number for number in numbers if number is not None]
        if not sizes or len(sizes) < len(numbers):
            return 0, math.inf
        return min(sizes) * LEAST_BITS / 8, max(sizes) * MOST_BITS / 8

    def _candidates(self, root: Path) -> list[Candidate]:
        """What may be a checkpoint in a tree; of links to one place the first."""
        if root not in self._there:
            listed = self._list(root)
            found = [one for folder, files in listed for one in candidates_in(folder, files, self.registry)]
            by_place: dict[str, Candidate] = {}
            for candidate in found:
                by_place.setdefault(os.path.realpath(candidate.place), candidate)
            self._there[root] = list(by_place.values())
        return self._there[root]

    def _holds_several(self, candidate: Candidate) -> bool:
        """Whether a candidate is one file that may hold several models, by the words in its header."""
        if len(candidate.files) > 1:
            return False
        try:
            key = stamps(candidate.files)
            if key not in self._several:
                text = words_of(candidate.files)
                self._several[key] = text is not None and self.registry.names.holds_several(text)
        except OSError:
            return False
        return self._several[key]

    def _may_serve(self, candidate: Candidate, need: Need) -> bool:
        """Whether the words in the headers do not rule a checkpoint out; much quicker than recognising it."""
        try:
            key = stamps(candidate.files), need.rows
            if key not in self._ruled_out:
                text = words_of(candidate.files)
                rows = [row for row in self.registry.rows if need.wants(row)]
                self._ruled_out[key] = text is not None and not any(self._may_be(row, text) for row in rows)
        except OSError:
            return False
        return not self._ruled_out[key]

    def _may_be(self, row: Row, text: bytes) -> bool:
        """Whether a header with this text may be one of a row.

        What a row requires by name stands there, maybe behind a prefix, unless a dialect has another name for it; and
        what has layers of a LoRA is no whole network.
        """
        rules = [rule for dialect in self.registry.names.dialects for rule in dialect.rename if rule.network != "*"]
        for name in row.match:
            is_made = any(compiled(rule.network).fullmatch(name) for rule in rules)
            if not specials(name) and not is_made and name.encode() not in text:
                return False
        return row.lora or bool(row.match) or LORA not in text

    def _list(self, root: Path) -> list[tuple[Path, list[Path]]]:
        """Folders and files of a tree."""
        if root not in self._listed:
            self._listed[root] = list(walk(root, self.tell))
        return self._listed[root]

    def _models(self, candidate: Candidate, root: Path) -> list[Model]:
        """What the files are, if they are known and sound."""
        try:
            key = stamps(candidate.files)
        except OSError:
            return []
        if key not in self._read:
            self._read[key] = self._recognised(candidate, root)
        return self._read[key]

    def _recognised(self, candidate: Candidate, root: Path) -> list[Model]:
        try:
            with examining(candidate.place):
                found = self.registry.detect_parts(candidate.files, row=candidate.row, searching=True)
        except CheckpointError:
            return []
        is_one_of_several = len(found) > 1 or self._holds_several(candidate)
        return [
            described(one, candidate.folder, root, one.header.prefix.removesuffix(".") if is_one_of_several else "")
            for one in found
            if len(found) == 1 or len(candidate.files) == 1  # shards have no name that says which model is meant
        ]


def described(found: Detection, folder: Path | None, root: Path, part: str = "") -> Model:
    """A recognised checkpoint with what decides whether it serves."""
    tensors = found.header.tensors.values()
    nbytes = Counter[str]()
    for tensor in tensors:
        nbytes[tensor.dtype] += tensor.nbytes
    dtype = nbytes.most_common(1)[0][0] if nbytes else ""
    numbers = sum(tensor.numel for tensor in tensors if tensor.dtype == dtype)
    return Model(
        files=found.files,
        root=root,
        row=found.row,
        folder=folder,
        networks=tuple({**part.config, **part.constants} for part in found.components),
        dtype=dtype,
        bits=8 * nbytes[dtype] / max(1, numbers),
        nbytes=sum(nbytes.values()),
        part=part,
        extras=frozenset(name for part in found.components for name in part.extras),
    )


def nearness(model: Model, precision: str) -> tuple[bool, float, bool]:
    """The smaller, the better a checkpoint suits a precision."""
    asked = BITS.get(precision, 16)
    return (model.bits < asked, abs(model.bits - asked), model.dtype != precision)


def within(path: Path, root: Path) -> str:
    """A path below a tree as seen from it, with slashes; another one as it is."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def size_of(file: Path) -> int:
    """Bytes of a file; 0 of one that is not there."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def stamps(files: Files) -> Stamps:
    """What changes when one of some files does. Raises OSError if one cannot be read."""
    found = [(str(file), file.stat()) for file in files]
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)


def words_of(files: Files) -> bytes | None:
    """The headers of safetensors files as they stand there; None: they are not all such, or are unusual."""
    texts = []
    for file in files:
        with file.open("rb") as stream:
            start = stream.read(9)
            length = int.from_bytes(start[:8], "little")
            if start[8:] != b"{" or length > LONGEST_HEADER:
                return None
            texts.append(stream.read(length))
    return b"".join(texts)


# --- trees


def candidates_in(folder: Path, files: Sequence[Path], registry: Registry) -> list[Candidate]:
    """What may be a checkpoint among the files of one folder."""
    suffixes = registry.formats.suffixes
    try:
        with examining(folder):
            own = registry.folder_files(folder) if any(file.name == "config.json" for file in files) else None
    except CheckpointError:
        return []
    if own is not None:
        row, weights = own
        return [Candidate(weights, folder, row)]
    try:
        with examining(folder):
            groups = group_files(files, suffixes)
    except CheckpointError:  # an index that cannot be read, or lists what is not there, must not hide other files
        groups = group_files((file for file in files if file.suffix in suffixes and file.exists()), suffixes)
    return [Candidate(group) for group in groups]


def walk(root: Path, tell: Callable[[str], None] = lambda _: None) -> Iterator[tuple[Path, list[Path]]]:
    """The folders of a tree, each with its files, in the order of their names; links are followed, once each."""
    seen: set[tuple[int, int]] = set()
    left = MOST
    waiting = [(tree, 0) for tree in reversed(trees(root))]
    while waiting:
        folder, depth = waiting.pop()
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        left -= len(entries)
        if left < 0:
            tell(f"{root} holds more than {MOST} files; name the folders below it that hold models")
            return
        inner, files = parted(folder, entries)
        yield folder, files
        if depth < DEEPEST:
            waiting += [(path, depth + 1) for path in reversed(inner)]


def parted(folder: Path, entries: Iterable[os.DirEntry[str]]) -> tuple[list[Path], list[Path]]:
    """The folders and the files among the entries of a folder, without those where no model lies."""
    folders, files = [], []
    for entry in entries:
        try:
            is_folder = entry.is_dir()
        except OSError:
            continue
        if not is_folder:
            files.append(folder / entry.name)
        elif not entry.name.startswith(".") and entry.name.lower() not in SKIPPED:
            folders.append(folder / entry.name)
    if folder.name == "snapshots" and folder.parent.name.startswith(REPOSITORY):
        newest = commit_of(folder.parent)
        folders.sort(key=lambda path: path.name != newest)
    return folders, files


def trees(root: Path) -> list[Path]:
    """Where models lie that belong to a folder: of a program's own folder that of its models; and what it is told of.

    ComfyUI names further folders in extra_model_paths.yaml, Wan2GP in wgp_config.json.
    """
    found = [root]
    if (root / "models").is_dir() and ((root / "custom_nodes").is_dir() or (root / COMFY_PATHS).is_file()):
        found = [root / "models"]
    for folder in (root, root.parent) if root.name == "models" else (root,):
        found += comfy_folders(folder / COMFY_PATHS)
    return [*found, *wan2gp_folders(root)]


def comfy_folders(file: Path) -> list[Path]:
    """The folders that an extra_model_paths.yaml of ComfyUI names; none if it cannot be read."""
    try:
        with readable(file).open(encoding="utf-8") as stream:
            content = parse_yaml(stream.read(LONGEST + 1))
    except (OSError, ValueError):
        return []
    folders = []
    for section in content.values() if isinstance(content, dict) else ():
        if not isinstance(section, dict):
            continue
        base = file.parent / spelled(str(section.get("base_path", "")))
        for kind, paths in section.items():
            if kind not in ("base_path", "is_default", *SKIPPED) and isinstance(paths, str):
                folders += [base / spelled(path.strip()) for path in paths.splitlines() if path.strip()]
    return list(dict.fromkeys(folders))


def readable(file: Path) -> Path:
    """The same file. Raises OSError for what is none, such as a pipe, which would be waited for."""
    if not file.is_file():
        raise FileNotFoundError(file)
    return file


def spelled(path: str) -> str:
    """A path of a user's file with `~` and variables filled in."""
    return os.path.expandvars(os.path.expanduser(path))


def wan2gp_folders(root: Path) -> list[Path]:
    """The folders of checkpoints that Wan2GP's settings name beyond those below its own folder."""
    try:
        with readable(root / WAN2GP_SETTINGS).open(encoding="utf-8") as stream:
            paths = json.loads(stream.read(LONGEST))["checkpoints_paths"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return [root / path for path in paths if isinstance(path, str)] if isinstance(paths, list) else []


def commit_of(repository: Path, branch: str = "main") -> str:
    """The commit of a branch in the cache of Hugging Face; empty if that is not known."""
    try:
        with readable(repository / "refs" / branch).open(encoding="utf-8") as stream:
            return stream.read(64).strip()
    except (OSError, ValueError):
        return ""


def snapshot(cache: Path, repo: str) -> Path | None:
    """The folder of the newest downloaded state of a repository in the cache of Hugging Face."""
    repository = cache / (REPOSITORY + repo.replace("/", "--"))
    commit = commit_of(repository)
    folder = repository / "snapshots" / commit
    return folder if commit and folder.is_dir() else None
