"""The configuration of a run: a YAML file in our schema, such as

    units: default+teacache
    models:
      - {path: Wan2.1-T2V-1.3B/Wan2.1_VAE.pth, repo: Wan-AI/Wan2.1-T2V-1.3B}
    settings:
      guidance: {scale: 4.5}

or one in the original OmniAvatar's, which `omniavatar.original` translates. With `base: NAME` it says only what it has
other than that configuration.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from omniavatar.checkpoints.library import Need
from omniavatar.errors import CheckpointError, InputError, explain, nearest
from omniavatar.resources import PACKAGE, data_folder
from omniavatar.values import LONGEST, parse_yaml, refuse_bools

DEFAULT_CONFIG = "tiny"
DEFAULT_UNITS = "default"
PACKAGED = "package:"
STRONGEST = 100.0
RANDOM = -1
"""The seed that stands for one that is drawn."""
Schema = TypeVar("Schema", bound=BaseModel)
Strength = float | tuple[tuple[float, float, float], ...]
"""Of a LoRA: one for all steps, or (begin, end, strength) for ranges of them, as fractions of their number."""


@dataclass(frozen=True)
class Words:
    """What messages call the ways to say where models are: options for users of the command line, else arguments."""

    models: str
    models_dir: str


OPTIONS = Words("--model", "--models-dir")
ARGUMENTS = Words("models=", "models_dir=")


class Published(BaseModel):
    """Files of a Hugging Face repository, by name or pattern."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: str = Field(description="repository, such as Wan-AI/Wan2.1-T2V-14B")
    files: tuple[str, ...] = Field(description="names or patterns in it", min_length=1)


class ModelEntry(BaseModel):
    """One model: a file, a pattern or a folder, and the Hugging Face repository it can be downloaded from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | tuple[str, ...] = Field(
        description="file, folder, pattern, or the list of a checkpoint's shards; relative ones start at models_dir",
        min_length=1,
    )
    beside: tuple[str, ...] = Field((), description="what must lie in the same folder, such as a tokenizer")
    repo: str | None = Field(None, description="Hugging Face repository that holds it")
    files: tuple[str, ...] = Field((), description="files of the repository to download; default: all")
    role: str | None = Field(
        None,
        pattern=r"^[a-z]\w*$",
        description="role of its transformer, or of the one its LoRA changes, where that is not 'dit'",
    )
    serves: Need | None = Field(None, description="what else serves, wherever it lies: rows of the checkpoint tables")
    folders: tuple[str, ...] = Field((), description="further folders where what belongs beside it may lie")
    quants: dict[str, tuple[Published, ...]] = Field({}, description="files of other precision that are published")
    instead: bool = Field(False, description="its networks take the place of those of the other entries")
    strength: Strength | None = Field(
        None,
        description="of its LoRA: one number, or [begin, end, strength] for ranges of the steps, from 0 to 1",
    )

    @field_validator("strength", mode="before")
    @classmethod
    def _strength(cls, strength: Any) -> Any:
        return None if strength is None else checked_strength(strength)

    def __hash__(self) -> int:
        return hash((self.path, self.beside, self.repo, self.role))

    @field_validator("path", mode="before")
    @classmethod
    def _at_home(cls, path: Any) -> Any:
        return [at_home(part) for part in path] if isinstance(path, list | tuple) else at_home(path)

    @property
    def parts(self) -> tuple[str, ...]:
        """The path, or the paths of the shards."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def needed(self) -> tuple[str, ...]:
        """Everything that must exist, as paths from models_dir."""
        return (*self.parts, *(str(Path(self.parts[0]).parent / name) for name in self.beside))

    @property
    def published_parts(self) -> tuple[str, ...]:
        """The path, or the paths of the shards, as they are in the repository."""
        folder = self.download_folder(Path())
        return tuple(os.path.relpath(part, folder) for part in self.parts)

    def below(self, folder: Path) -> str | list[str]:
        """What to open: one path or the shards, with relative paths below `folder`."""
        paths = [str(folder / part) for part in self.parts]
        return paths[0] if isinstance(self.path, str) else paths

    def download_folder(self, folder: Path) -> Path:
        """Where the repository belongs: the part of the path that has its name, or else the folder of the path."""
        path = folder / self.parts[0]
        name = Path(self.repo or "").name
        return next((parent for parent in (path, *path.parents) if parent.name == name), path.parent)


class RunConfig(BaseModel):
    """Everything about a run that is not a single video's input."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str | None = Field(None, description="configuration that this one changes: a packaged name or a file")
    units: str = Field(DEFAULT_UNITS, description="plan expression; one that begins with + or - changes the base's")
    models: tuple[ModelEntry, ...] = Field((), description="the model files, beside those of the base")
    models_dir: str = Field("pretrained_models", description="where relative model paths start")
    search: tuple[str, ...] = Field((), description="further folders in which models are looked for")
    tables: tuple[str, ...] = Field((), description="checkpoint tables, such as those of omni calibrate")
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings by unit")
    inputs: dict[str, Any] = Field(default_factory=dict, description="inputs that every video of the run has")
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", description="auto: bf16 on CUDA, fp32 on the CPU")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    gpus: int = Field(1, ge=1, le=1024, description="ranks that work together; on this machine they are started")
    seed: int = Field(42, ge=RANDOM, lt=2**63, description="seed of the noise; -1 or random: drawn for each run")
    fps: int = Field(25, ge=1, le=120, description="frames per second")

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        return refuse_bools(value, cls.model_fields[str(info.field_name)].annotation)

    @field_validator("seed", mode="before")
    @classmethod
    def _seed(cls, seed: Any) -> Any:
        return RANDOM if seed == "random" else seed

    @field_validator("units", mode="before")
    @classmethod
    def _joined(cls, units: Any) -> Any:
        """A list of expressions is their sum; changes alone are changes of the default."""
        return changed_plan(DEFAULT_UNITS, joined_plan(units))

    @field_validator("search", "tables", mode="before")
    @classmethod
    def _at_home(cls, paths: Any) -> Any:
        return [at_home(path) for path in paths] if isinstance(paths, list | tuple) else paths

    @field_validator("models", mode="before")
    @classmethod
    def _entries(cls, models: Any) -> Any:
        """A plain string is a path, or ROLE=PATH; a list of them the shards of one checkpoint."""
        if isinstance(models, list | tuple):
            return [model_entry(model) if isinstance(model, str | list) else model for model in models]
        return models

    @field_validator("settings", mode="before")
    @classmethod
    def _without_empty(cls, settings: Any) -> Any:
        """A unit with nothing after its name has no settings."""
        return {unit: values or {} for unit, values in settings.items()} if isinstance(settings, dict) else settings

    @property
    def models_folder(self) -> Path:
        """Where relative model paths start; "package:x" is the folder x of the installed package."""
        if self.models_dir.startswith(PACKAGED):
            return PACKAGE / self.models_dir.removeprefix(PACKAGED)
        return Path(self.models_dir).expanduser()

    def model_files(self, words: Words = OPTIONS) -> list[str | list[str]]:
        """What to open for every model entry. Raises CheckpointError that says what is missing and how to get it."""
        folder = self.models_folder
        missing = {
            entry: absent
            for entry in self.models
            if (absent := [path for path in entry.needed if not self.has(entry, path)])
        }
        if missing:
            raise CheckpointError(explain_missing(missing, [folder], words))
        return [entry.below(folder) for entry in self.models]

    @property
    def folders_beside(self) -> list[Path]:
        """The further folders of all entries."""
        return list(dict.fromkeys(Path(folder).expanduser() for entry in self.models for folder in entry.folders))

    def has(self, entry: ModelEntry, path: str) -> bool:
        """Whether something that an entry needs is below models_dir, or in the entry's further folders."""
        if found(self.models_folder / path):
            return True
        beside = [name for name in entry.beside if path == str(Path(entry.parts[0]).parent / name)]
        return any(found(Path(folder).expanduser() / name) for name in beside for folder in entry.folders)


def joined_plan(units: Any) -> Any:
    """A list of plan expressions as one; anything else as it is."""
    if not isinstance(units, list | tuple) or not all(isinstance(unit, str) for unit in units):
        return units
    return "".join(unit if is_change(unit) or not index else f"+{unit}" for index, unit in enumerate(units))


def changed_plan(plan: str, units: Any) -> Any:
    """A plan with the changes of an expression such as `+teacache-lora`; any other expression takes its place."""
    if not isinstance(units, str) or not is_change(units):
        return units
    change = units.strip()
    return f"{plan} {change}" if change.startswith("-") else f"{plan}{change}"  # a hyphen might belong to a name


def is_change(units: str) -> bool:
    """Whether a plan expression only says what to add to another one, or take out of it."""
    return units.lstrip().startswith(("+", "-"))


def model_entry(model: str | list[str]) -> dict[str, Any]:
    """The fields of an entry that is only a path, shards, or ROLE=PATH."""
    role, equals, path = model.partition("=") if isinstance(model, str) else ("", "", "")
    if equals and re.fullmatch(r"[a-z]\w*", role) and not Path(str(model)).exists():
        return {"path": path, "role": role}
    return {"path": model}


def lora_entry(text: str) -> dict[str, Any]:
    """The fields of an entry that is FILE, FILE=STRENGTH, ROLE=FILE or ROLE=FILE=STRENGTH; the strength is 1 if it is
    not said. Raises InputError for a strength that cannot be.
    """
    file, equals, last = text.rpartition("=")
    if equals and not Path(text).expanduser().exists():
        try:
            strength = parse_yaml(last) if last.startswith("[") else float(last)
        except ValueError:  # no strength, but the end of a path
            return {**model_entry(text), "strength": 1.0}
        try:
            return {**model_entry(file), "strength": checked_strength(strength)}
        except ValueError as error:
            raise InputError(f"--lora {text}: {error}") from None
    return {**model_entry(text), "strength": 1.0}


def checked_strength(strength: Any) -> Strength:
    """The strength of a LoRA. Raises ValueError for what is none."""
    if is_number(strength, STRONGEST):
        return float(strength)
    if not isinstance(strength, list | tuple) or not strength:
        raise ValueError(f"a strength is a number from {-STRONGEST:g} to {STRONGEST:g}, or a list of ranges of steps")
    ranges = []
    before = 0.0
    for part in strength:
        if not (isinstance(part, list | tuple) and len(part) == 3 and all(is_number(one, STRONGEST) for one in part)):
            raise ValueError(f"{part!r} is no range of steps; give [begin, end, strength], such as [0, 0.5, 1.0]")
        begin, end, value = map(float, part)
        if not before <= begin < end <= 1:
            raise ValueError(f"the range {part!r} is not between 0 and 1 and behind the one before it")
        before = end
        ranges.append((begin, end, value))
    return tuple(ranges)


def is_number(value: Any, most: float) -> bool:
    """Whether a value is a finite number that is not larger than this, whatever its sign."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= most


def found(path: Path) -> bool:
    """Whether a path, or a pattern, names something, maybe with a version of the network behind it (`a.pt::ema`)."""
    file = path.with_name(path.name.rpartition("::")[0] or path.name)
    return path.exists() or file.is_file() or bool(glob.glob(str(path)))


def explain_missing(
    missing: Mapping[ModelEntry, Sequence[str]],
    folders: Sequence[Path],
    words: Words = OPTIONS,
    hints: Sequence[str] = (),
    name: str = "",
) -> str:
    """What is missing, where it was looked for, and the commands that fetch it: one line, or a short list.

    folders: the first is models_dir. hints: lines about files that came near. name: of the configuration.
    """
    paths = list(dict.fromkeys(path for absent in missing.values() for path in absent))
    folder = folders[0]
    commands = download_commands(missing, folder)
    if not commands and len(paths) == 1 and not hints:
        where = f"{words.models}, or with {words.models_dir} for all of them"
        return f"no model at {folder / paths[0]}; say where it is with {where}"
    looked = ", ".join(str(one.resolve()) for one in folders)
    lines = [f"{len(paths)} model files are missing; looked in {looked} for"]
    lines += [f"  {path}" for path in paths]
    lines += hints
    if commands:
        ours = [shlex.join(["omni", "models", "download", name])] if name else []
        lines += ["download them with", *(f"  {command}" for command in ours), *(["or with"] if ours else [])]
        lines += [f"  {command}" for command in commands]
    return "\n".join([*lines, f"or say where they are with {words.models_dir}"])


def download_commands(entries: Iterable[ModelEntry], folder: Path) -> list[str]:
    """One command for each repository that holds some of the entries; all of it if one entry wants all."""
    wanted: dict[tuple[str, Path], list[tuple[str, ...]]] = {}
    for entry in entries:
        if entry.repo is not None:
            wanted.setdefault((entry.repo, entry.download_folder(folder)), []).append(entry.files)
    commands = []
    for (repo, target), groups in wanted.items():
        files = [name for group in groups for name in group]
        if not all(groups) or any(glob.has_magic(name) for name in files):
            files = []
        commands.append(shlex.join(["hf", "download", repo, *files, "--local-dir", str(target)]))
    return commands


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises InputError."""
    try:
        with path.open(encoding="utf-8") as file:
            content = parse_yaml(file.read(LONGEST + 1))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"the configuration {path} is not a mapping of names to values")
    return content


def packaged_configs(kind: str = "") -> dict[str, Path]:
    """The packaged configurations by name; those of another kind lie in a folder of its name."""
    return {file.stem: file for file in (data_folder("configs") / kind).glob("*.yaml")}


def find_config(name: str, kind: str = "") -> Path:
    """The file of this name, or the packaged configuration of a kind, such as "omniavatar-14b"."""
    path = Path(at_home(name))
    if path.is_file():
        return path
    packaged = packaged_configs(kind)
    stem = path.name.removesuffix(".yaml")
    if stem in packaged and path.parent in (Path(), Path(kind), Path("configs", kind)):
        return packaged[stem]
    hint = nearest(stem, packaged)
    if path.suffix not in (".yaml", ".yml") and path.parent == Path():
        raise InputError(f"there is no configuration {name}{hint}")
    what = "is a folder" if path.is_dir() else "does not exist"
    raise InputError(f"the configuration file {name} {what}{hint.replace('; choices:', '; packaged ones:')}")


def parse_config(content: Mapping[str, Any], source: Path | str) -> RunConfig:
    """Validate a mapping in our schema. Raises InputError that names the field."""
    return validated(RunConfig, content, source)


def validated(schema: type[Schema], content: Mapping[str, Any], source: Path | str) -> Schema:
    """The values of a schema. Raises InputError that names the field."""
    known = schema.model_fields
    for key in content:
        if key not in known:
            raise InputError(f"{source}: unknown field '{key}'{nearest(str(key), known)}")
    try:
        return schema(**paths_at_home(schema, content))
    except ValidationError as error:
        raise InputError(f"{source}: {unknown_field(schema, error) or explain(error)}") from None


def at_home(value: Any) -> Any:
    """A path with the user's folder for `~` at its beginning; anything else as it is."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def paths_at_home(annotation: Any, value: Any) -> Any:
    """A value for a field or schema with the user's folder for `~` in all that is a path by its type."""
    if isinstance(value, str):
        return at_home(value) if annotation is Path or Path in get_args(annotation) else value
    if not isinstance(value, Mapping):
        return value
    if get_origin(annotation) is dict:
        return {key: paths_at_home(get_args(annotation)[1], inner) for key, inner in value.items()}
    fields = {name: info.annotation for schema in schemas_in(annotation) for name, info in schema.model_fields.items()}
    return {key: paths_at_home(fields.get(key), inner) for key, inner in value.items()}


def unknown_field(schema: type[BaseModel], error: ValidationError) -> str:
    """What is wrong if the first problem is a name that an inner schema does not know; nothing otherwise."""
    first = error.errors(include_url=False)[0]
    if first["type"] != "extra_forbidden":
        return ""
    *path, last = first["loc"]
    for part in path:
        if isinstance(part, str):
            schema = next(schemas_in(schema.model_fields[part].annotation))
    where = ".".join(str(part) for part in first["loc"])
    return f"unknown field '{where}'{nearest(str(last), schema.model_fields)}"


def schemas_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schemas in a type such as `tuple[Schema, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from schemas_in(inner)


def merge_settings(*layers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings by unit out of several layers, the weakest first; the units of later layers come last."""
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for unit, settings in layer.items():
            merged[unit] = {**merged.pop(unit, {}), **settings}
    return merged
