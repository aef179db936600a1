"""From what a user names (a file, shards, a pattern, a folder) to the groups of files that each are one checkpoint."""

from __future__ import annotations

import glob
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from omniavatar.checkpoints.headers import SUFFIXES
from omniavatar.errors import CheckpointError, parsing

Source = str | Path | Sequence[str | Path]
"""A path or pattern; or a list of them whose files together are one checkpoint."""

Files = tuple[Path, ...]
_INDEX = ".index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})")


def find_checkpoints(source: Source) -> list[Files]:
    """The checkpoints that a source names, each the tuple of its files; a checkpoint that lacks shards is an error."""
    if not isinstance(source, str | Path):
        files = tuple(file for item in source for group in find_checkpoints(item) for file in group)
        if not files:
            raise CheckpointError("an empty list of model files was given; give at least one path")
        return [tuple(dict.fromkeys(files))]
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.name.endswith(_INDEX) and path.is_file():
        return [indexed_files(path)]
    if path.is_file():
        return [(path,)]
    found = [Path(name) for name in sorted(glob.glob(str(path)))]
    if not found:
        raise CheckpointError(f"no model file at {path}; give a file, a pattern, or the folder that holds the files")
    return group_files(file for file in found if file.is_file())


def _in_folder(folder: Path) -> list[Files]:
    groups = group_files(sorted(folder.iterdir()))
    if not groups:
        raise CheckpointError(
            f"{folder} holds no model files; looked for {', '.join('*' + suffix for suffix in SUFFIXES)}"
        )
    return groups


def group_files(paths: Iterable[Path]) -> list[Files]:
    """Group the model files among some paths: shards by an index file or by their names, others one by one."""
    paths = list(paths)
    groups = [indexed_files(path) for path in paths if path.name.endswith(_INDEX)]
    taken = {file for group in groups for file in group}
    shards: dict[tuple[Path, str, str], list[Path]] = defaultdict(list)
    for path in paths:
        if path in taken or path.suffix not in SUFFIXES or not path.is_file():
            continue
        match = _SHARD.fullmatch(path.stem)
        shards[(path.parent, match["stem"] if match else path.stem, path.suffix)].append(path)
    groups += [tuple(sorted(group)) for group in shards.values()]
    return sorted(dict.fromkeys(groups))


def indexed_files(index: Path) -> Files:
    """The shards that an `*.index.json` lists; names that leave its folder are refused."""
    with parsing(lambda _: CheckpointError(f"{index} is not an index of model shards; it needs a 'weight_map'")):
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise CheckpointError(f"{index} lists shards that are not plain file names of its own folder")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise CheckpointError(
            f"{index} lists {', '.join(missing[:3])}, which {index.parent} lacks; download the missing shards"
        )
    return tuple(index.parent / name for name in sorted(names))


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
