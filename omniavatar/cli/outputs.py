"""Where the videos of one `omni run` go: where the user says, else to `out/` under a name that is free."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar.errors import InputError

if TYPE_CHECKING:
    from omniavatar.engine.unit import PipelineUnit

OUTPUT = "output"
SEED = "{seed}"
"""What stands for the seed in the name of a file or folder."""
VIDEO_SUFFIXES = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}


def with_output(
    inputs: Mapping[str, Any],
    units: Mapping[str, type[PipelineUnit]],
    seed: int,
    *,
    list_file: str | None = None,
    default: Path | None = None,
) -> dict[str, Any]:
    """The inputs with the file to write, or of a list with its folder; as they are if no unit writes any.

    A name that the user has given has the seed filled in and may exist; any other is free. default: in place of the
    unit's. Raises InputError for the name of a video where a folder is meant.
    """
    if inputs.get(OUTPUT) is not None:
        return {**inputs, OUTPUT: given(inputs[OUTPUT], seed, is_folder=list_file is not None)}
    fields = (unit.Inputs.model_fields for unit in units.values())
    usual = next((inputs_of[OUTPUT].default for inputs_of in fields if OUTPUT in inputs_of), None)
    if not isinstance(usual, Path):
        return dict(inputs)
    wanted = (default or usual) if list_file is None else Path("out", Path(list_file).stem)
    return {**inputs, OUTPUT: free(wanted)}


def given(output: Any, seed: int, *, is_folder: bool) -> Any:
    """The place that the user has named; what is no path is left to the unit to refuse."""
    if not isinstance(output, str | Path):
        return output
    path = Path(str(output).replace(SEED, str(seed)))
    if is_folder and path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
        raise InputError(f"--output is {path} and a list makes many videos; name a folder, such as {path.stem}")
    return path


def free(path: Path) -> Path:
    """The path, or the first of NAME-2, NAME-3, ... at which nothing lies."""
    names = (path if number == 1 else path.with_stem(f"{path.stem}-{number}") for number in count(1))
    return next(name for name in names if not name.exists() and not name.is_symlink())
