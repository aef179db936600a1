"""From what a user names (a file, shards, a pattern, a folder) to the groups of files that each are one checkpoint."""

from __future__ import annotations

import glob
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from omniavatar.checkpoints.formats.safetensors import Safetensors, read_contents
from omniavatar.checkpoints.headers import SUFFIXES
from omniavatar.errors import CheckpointError, parsing, shown

Source = str | Path | Sequence[str | Path]
"""A path or pattern; or a list of them whose files together are one checkpoint."""

Files = tuple[Path, ...]
_INDEX = ".index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})")
_MAX_INDEX_BYTES = 100_000_000

LAYOUTS: dict[str, dict[str, str | None]] = {
    "model_index.json": {
        "transformer": None,
        "transformer_2": "dit2",
        "vae": None,
        "text_encoder": None,
        "image_encoder": None,
    },
    "high_noise_model": {"": None, "high_noise_model": None, "low_noise_model": "dit2"},
}
"""Folders of several models: what such a folder has -> its sub-folders with models ("": itself), and the role of their
transformer if it is not the first."""
SAME_WEIGHTS = (("pytorch_model", ".bin", "model", ".safetensors"),)
"""One model in two formats in a folder: stem and ending of what is passed over, and of what is read instead."""
_VARIANT = re.compile(r"(?P<stem>(?:diffusion_)?(?:pytorch_)?model)\.(?:fp16|bf16|fp32|non_ema)")
"""A second copy of a model in another precision, as diffusers names it."""


def find_checkpoints(source: Source, suffixes: Collection[str] = SUFFIXES) -> list[Files]:
    """The checkpoints that a source names, each the tuple of its files; a checkpoint that lacks shards is an error.

    suffixes: the endings of model files in folders.
    """
    if not isinstance(source, str | Path):
        files = tuple(file for item in source for group in find_checkpoints(item, suffixes) for file in group)
        if not files:
            raise CheckpointError("an empty list of model files was given; give at least one path")
        return [tuple(dict.fromkeys(files))]
    path = Path(source).expanduser()
    if path.is_dir():
        return [files for _, _, groups in folder_groups(path, suffixes) for files in groups]
    if path.name.endswith(_INDEX) and path.is_file():
        return [indexed_files(path, suffixes)]
    if path.is_file():
        return [(path,)]
    found = [Path(name) for name in sorted(glob.glob(str(path)))]
    if not found:
        raise CheckpointError(f"no model file at {path}; give a file, a pattern, or the folder that holds the files")
    there = [file for file in found if file.is_file()]
    groups = group_files(there, suffixes)
    if not groups:
        what = "is no model file by its name" if there else "is no file that can be read"
        raise CheckpointError(f"{found[0]} {what}; give a file, a pattern, or the folder that holds the files")
    return groups


def parts_of_folder(folder: Path) -> list[tuple[Path, str | None]]:
    """The folders whose models a folder stands for, each with the role of its transformer; mostly itself alone.

    A repository of the Hugging Face cache stands for its snapshot.
    """
    folder = snapshot(folder)
    for sign, parts in LAYOUTS.items():
        if (folder / sign).exists():
            return [(folder / name, role) for name, role in parts.items() if (folder / name).is_dir()]
    return [(folder, None)]


def snapshot(folder: Path) -> Path:
    """The files of a repository in the Hugging Face cache: those of its main branch, or the only ones there are."""
    snapshots = folder / "snapshots"
    if not (folder.name.startswith("models--") and snapshots.is_dir()):
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and main.stat().st_size < 200:
        name = main.read_text(encoding="utf-8", errors="replace").strip()
        if name == Path(name).name and (snapshots / name).is_dir():
            return snapshots / name
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if len(found) != 1:
        raise CheckpointError(
            f"{folder} has {len(found)} snapshots and none for its branch main; name one of the folders in {snapshots}"
        )
    return found[0]


def folder_groups(path: Path, suffixes: Collection[str]) -> list[tuple[Path, str | None, list[Files]]]:
    """The folders whose models a folder stands for, each with the role of its transformer and its checkpoints."""
    parts = [(folder, role, group_files(sorted(folder.iterdir()), suffixes)) for folder, role in parts_of_folder(path)]
    if not any(groups for _, _, groups in parts):
        raise CheckpointError(
            f"{path} holds no model files; looked for {', '.join('*' + suffix for suffix in suffixes)}"
        )
    return parts


def group_files(paths: Iterable[Path], suffixes: Collection[str] = SUFFIXES) -> list[Files]:
    """Group the model files among some paths: shards by an index file or by their names, others one by one.

    A model that is there twice, pickled or in another precision, is read once. Raises CheckpointError for a link to
    nothing.
    """
    paths = list(paths)
    for path in paths:
        if path.suffix in suffixes and path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{path} is a link to {path.readlink()}, which is not there; download the model again"
            )
    paths = without_copies(paths)
    groups = [indexed_files(path, suffixes) for path in paths if path.name.endswith(_INDEX)]
    taken = {file for group in groups for file in group}
    shards: dict[tuple[Path, str, str], list[Path]] = defaultdict(list)
    for path in paths:
        if path in taken or path.suffix not in suffixes or not path.is_file():
            continue
        match = _SHARD.fullmatch(path.stem)
        shards[(path.parent, match["stem"] if match else path.stem, path.suffix)].append(path)
    groups += [tuple(sorted(group)) for group in shards.values()]
    return sorted(dict.fromkeys(groups))


def without_copies(paths: Sequence[Path]) -> list[Path]:
    """The paths without those of models that are there in a form that is read instead."""
    there = {(path.parent, _model_stem(path)) for path in paths}

    def is_copy(path: Path) -> bool:
        stem, suffix = _model_stem(path)
        variant = _VARIANT.fullmatch(stem)
        if variant and (path.parent, (variant["stem"], suffix)) in there:
            return True
        return any(
            (stem, suffix) == (other, its) and (path.parent, (read, instead)) in there
            for other, its, read, instead in SAME_WEIGHTS
        )

    return [path for path in paths if not is_copy(path)]


def _model_stem(path: Path) -> tuple[str, str]:
    """Name and ending of the model that a file is of, without a shard's number; of an index, those of its shards."""
    name = Path(path.name.removesuffix(_INDEX))
    match = _SHARD.fullmatch(name.stem)
    return (match["stem"] if match else name.stem), name.suffix


def read_index(index: Path, suffixes: Collection[str] = SUFFIXES) -> dict[str, str]:
    """Where each tensor lies, by an `*.index.json`: its name -> the name of a file in the same folder.

    Raises CheckpointError for what is no such index, and for names that are no files of its folder.
    """
    with parsing(lambda reason: CheckpointError(f"{index} is not JSON ({reason}); download it again")):
        if not index.is_file():
            raise ValueError("it is no file")
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError("it is too large")
        content = json.loads(index.read_bytes())
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map, which says in which file a tensor lies; download it again")
    for name in places.values():
        if not isinstance(name, str):
            raise CheckpointError(f"{index}: the name of a shard is no text, but {shown(name)}; download it again")
        if name != Path(name).name or "\\" in name:
            raise CheckpointError(f"{index} lists {shown(name)}, which is no plain file name of its own folder")
        if Path(name).suffix not in suffixes:
            raise CheckpointError(f"{index} lists {shown(name)}, which is no model file by its name")
    return places


def indexed_files(index: Path, suffixes: Collection[str] = SUFFIXES) -> Files:
    """The shards that an `*.index.json` lists; names that leave its folder are refused, links are not."""
    names = set(read_index(index, suffixes).values())
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise CheckpointError(
            f"{index} lists {', '.join(map(plain, missing[:3]))}, which {index.parent} lacks; "
            "download the missing shards"
        )
    stem, suffix = _model_stem(index)
    for path in sorted(index.parent.iterdir()):
        if (
            path.name not in names
            and path.suffix == suffix
            and _SHARD.fullmatch(path.stem)
            and _model_stem(path)[0] == stem
        ):
            raise CheckpointError(f"{index} leaves out {path.name}, which lies beside it; download the index again")
    return tuple(index.parent / name for name in sorted(names))


def plain(name: str) -> str:
    """A name as it is, or quoted if it holds what a terminal would act on."""
    return name if name.isprintable() else repr(name)


def check_index(files: Files) -> None:
    """Refuse shards that lack a tensor which the index beside them places there."""
    for index in sorted(files[0].parent.glob("*" + _INDEX)) if len(files) > 1 else ():
        places = read_index(index)
        if not set(places.values()) <= {file.name for file in files}:
            continue
        held = {file.name: set(read_contents(file).tensors) for file in files if file.suffix in Safetensors.suffixes}
        for name, file in places.items():
            if file in held and name not in held[file]:
                raise CheckpointError(f"{index} places '{name[:200]}' in {file}, which lacks it; download both again")


def check_shards(files: Files) -> None:
    """Refuse a checkpoint of which some numbered shards are missing, before a wrong hash hides the reason."""
    for file in files:
        match = _SHARD.fullmatch(file.stem)
        if match is None:
            continue
        expected = [
            f"{match['stem']}-{n:05d}-of-{match['total']}{file.suffix}" for n in range(1, int(match["total"]) + 1)
        ]
        missing = sorted(set(expected) - {other.name for other in files})
        if missing:
            raise CheckpointError(
                f"{file.parent}: {len(missing)} of {len(expected)} shards are missing, first {missing[0]}"
            )
