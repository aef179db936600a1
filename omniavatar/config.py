"""The configuration of a run: a YAML file in our schema, or in the original OmniAvatar's (see `omniavatar.original`).

    units: default+teacache
    models:
      - {path: Wan2.1-T2V-14B/diffusion_pytorch_model*.safetensors, repo: Wan-AI/Wan2.1-T2V-14B}
    settings:
      guidance: {scale: 4.5}
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from omniavatar.errors import CheckpointError, InputError, explain, nearest
from omniavatar.resources import PACKAGE, data_folder

PACKAGED = "package:"


class ModelEntry(BaseModel):
    """One model: a file, a pattern or a folder, and the Hugging Face repository it can be downloaded from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | tuple[str, ...] = Field(
        description="file, folder, pattern, or the list of a checkpoint's shards; relative ones start at models_dir"
    )
    repo: str | None = Field(None, description="Hugging Face repository that holds it")
    files: tuple[str, ...] = Field((), description="files of the repository that are needed; default: all")
    folder: str | None = Field(None, description="folder below models_dir to download to; default: that of the path")

    @property
    def parts(self) -> tuple[str, ...]:
        """The path, or the paths of the shards."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def below(self, folder: Path) -> str | list[str]:
        """What to open: one path or the shards, with relative paths below `folder`."""
        paths = [str(folder / part) for part in self.parts]
        return paths[0] if isinstance(self.path, str) else paths


class RunConfig(BaseModel):
    """Everything about a run that is not a single video's input."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    units: str = Field("default", description="plan expression")
    models: tuple[ModelEntry, ...] = Field((), description="the model files")
    models_dir: str = Field("pretrained_models", description="where relative model paths start")
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings by unit")
    inputs: dict[str, Any] = Field(default_factory=dict, description="inputs that every video of the run has")
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", description="auto: bf16 on CUDA, fp32 on the CPU")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    seed: int = Field(42, ge=0, lt=2**40, description="seed of the noise")
    fps: int = Field(25, ge=1, le=120, description="frames per second")

    @field_validator("units", mode="before")
    @classmethod
    def _joined(cls, units: Any) -> Any:
        """A list of expressions is their sum."""
        return "+".join(units) if isinstance(units, list) and all(isinstance(unit, str) for unit in units) else units

    @field_validator("models", mode="before")
    @classmethod
    def _entries(cls, models: Any) -> Any:
        """A plain string is a path."""
        if isinstance(models, list | tuple):
            return [{"path": model} if isinstance(model, str | Path) else model for model in models]
        return models

    @property
    def models_folder(self) -> Path:
        """Where relative model paths start; "package:x" is the folder x of the installed package."""
        if self.models_dir.startswith(PACKAGED):
            return PACKAGE / self.models_dir.removeprefix(PACKAGED)
        return Path(self.models_dir).expanduser()

    def model_files(self) -> list[str | list[str]]:
        """What to open for every model entry. Raises CheckpointError that says what is missing and how to get it."""
        missing = [(entry, part) for entry in self.models for part in entry.parts if not found(self.models_folder / part)]
        if missing:
            raise CheckpointError(self._explain(missing))
        return [entry.below(self.models_folder) for entry in self.models]

    def _explain(self, missing: Sequence[tuple[ModelEntry, str]]) -> str:
        """What is missing, where it was looked for, and the commands that fetch it."""
        lines = [f"{len(missing)} model files are missing; looked for in {self.models_folder.resolve()}:"]
        lines += [f"  {part}" for _, part in missing]
        commands = dict.fromkeys(command for entry, _ in missing if (command := self._download(entry)))
        if commands:
            lines += ["download them with (after pip install huggingface_hub):", *(f"  {command}" for command in commands)]
        else:
            lines += ["put them there, or say where they are with --models-dir"]
        return "\n".join(lines)

    def _download(self, entry: ModelEntry) -> str | None:
        if entry.repo is None:
            return None
        files = " ".join(f"'{pattern}'" for pattern in entry.files)
        folder = self.models_folder / entry.folder if entry.folder else (self.models_folder / entry.parts[0]).parent
        return f"hf download {entry.repo} {files + ' ' if files else ''}--local-dir {folder}"


def found(path: Path) -> bool:
    """Whether a path, or a pattern, names something."""
    return path.exists() or bool(glob.glob(str(path)))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises InputError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"cannot read the configuration {path}: {reason}") from None
    if not isinstance(content, dict):
        raise InputError(f"the configuration {path} is not a mapping of names to values")
    return content


def find_config(name: str) -> Path:
    """The file of this name, or the packaged configuration, such as "omniavatar-14b"."""
    path = Path(name)
    if path.is_file():
        return path
    packaged = {file.stem: file for file in data_folder("configs").glob("*.yaml")}
    stem = path.name.removesuffix(".yaml")
    if stem in packaged and path.parent in (Path(), Path("configs")):
        return packaged[stem]
    raise InputError(f"there is no configuration {name}{nearest(stem, packaged)}")


def parse_config(content: Mapping[str, Any], source: Path | str) -> RunConfig:
    """Validate a mapping in our schema. Raises InputError that names the field."""
    known = RunConfig.model_fields
    for key in content:
        if key not in known:
            raise InputError(f"{source}: unknown field '{key}'{nearest(str(key), known)}")
    try:
        return RunConfig(**content)
    except ValidationError as error:
        raise InputError(f"{source}: {explain(error)}") from None
