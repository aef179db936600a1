"""Batches of samples: from a cache on disk that `omni train prepare` has written, or made anew in every step.

    with CacheWriter(folder) as cache:
        cache.add(preparation.sample(take))
    write_origin(folder, origin)

    samples = CachedSamples.open(folder, origin, device="cuda")
    batch = samples.draw(generator, 16)

A cache is a folder of safetensors shards and `origin.json`, which says what they were made of. In a shard a tensor that
several samples have in common, such as the embedding of the negative prompt, is stored once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from omniavatar.errors import InputError
from omniavatar.training.preparation import Preparation, Sample, Shapes, joined
from omniavatar.training.takes import Source, TakeSettings

ORIGIN = "origin.json"
UNFINISHED = "unfinished.json"
"""In place of `ORIGIN` in a cache that is not complete."""
SHARD_BYTES = 256 * 2**20
HOLD_GIB = 16.0
Origin = Mapping[str, Any]
"""What a cache was made of, as JSON values: units, weights by role, settings of the samples."""


class Samples(Protocol):
    """Where batches come from."""

    def draw(self, draw: torch.Generator, count: int) -> dict[str, Tensor]:
        """A random batch of samples that have the same shapes."""
        ...


@dataclass(frozen=True)
class LiveSamples:
    """Samples that are prepared when they are asked for."""

    preparation: Preparation
    source: Source
    settings: TakeSettings

    TRIES = 100

    def draw(self, draw: torch.Generator, count: int) -> dict[str, Tensor]:
        """Raises InputError if the clips are so different that none of many has the shapes of the first."""
        settings = self.settings.narrowed(draw)
        found: list[Sample] = []
        for _ in range(self.TRIES * count):
            sample = self.preparation.sample(self.source.take(settings, draw))
            if not found or Shapes.of(sample) == Shapes.of(found[0]):
                found.append(sample)
            if len(found) == count:
                return joined(found)
        raise InputError(
            f"no {count} clips of one size and length were found for a batch; take a smaller batch, or cache samples "
            "with omni train prepare"
        )


@dataclass(frozen=True)
class Place:
    """A sample in a cache: its shard, and under which name the shard has each value."""

    shard: Path
    names: Mapping[str, str]

    def read(self) -> Sample:
        """Raises InputError if the shard is damaged."""
        with opened(self.shard) as shard:
            return {name: shard.get_tensor(key) for name, key in self.names.items()}


@dataclass(frozen=True)
class CachedSamples:
    """Samples of a cache, those of equal shapes together.

    held: for every group its values (n ...) on the device; none: they are read from the disk batch by batch.
    """

    groups: tuple[Sequence[Place], ...]
    device: torch.device
    held: tuple[Mapping[str, Tensor], ...] = ()

    @classmethod
    def open(
        cls, folder: Path, origin: Origin, device: torch.device | str, *, hold_gib: float = HOLD_GIB
    ) -> CachedSamples:
        """All samples of a cache; one of up to `hold_gib` GiB is held on the device.

        Raises InputError if it was made of something else, naming what.
        """
        check_origin(folder, origin)
        groups: dict[Shapes, list[Place]] = defaultdict(list)
        shards = sorted(folder.glob("*.safetensors"))
        for path in shards:
            for shapes, place in places(path):
                groups[shapes].append(place)
        if not groups:
            raise InputError(f"the cache {folder} has no samples; make it with omni train prepare")
        target = torch.device(device)
        held: list[dict[str, Tensor]] = []
        if sum(path.stat().st_size for path in shards) <= hold_gib * 2**30:
            together = (joined([place.read() for place in group]) for group in groups.values())
            held = [{name: value.to(target) for name, value in group.items()} for group in together]
        return cls(tuple(groups.values()), target, tuple(held))

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Samples in every group."""
        return [len(group) for group in self.groups]

    def draw(self, draw: torch.Generator, count: int) -> dict[str, Tensor]:
        """A group, with the chance that its size gives it, and samples of it."""
        group = int(torch.multinomial(torch.tensor(self.sizes, dtype=torch.float64), 1, generator=draw))
        chosen = torch.randint(self.sizes[group], (count,), generator=draw)
        if self.held:
            where = chosen.to(self.device)
            return {name: values[where] for name, values in self.held[group].items()}
        batch = joined([self.groups[group][index].read() for index in chosen.tolist()])
        return {name: value.to(self.device) for name, value in batch.items()}


class CacheWriter:
    """Adds samples to a cache in shards of about `shard_bytes`; `part` keeps several writers apart.

    Its length is the number of samples, with those that this part of the cache had before.
    """

    def __init__(self, folder: Path, part: int = 0, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.part, self.shard_bytes = folder, part, shard_bytes
        before = sorted(folder.glob(f"{part:03}-*.safetensors"))
        self.shards, self._written = len(before), sum(len(samples_in(path)) for path in before)
        self._tensors: dict[str, Tensor] = {}
        self._samples: list[dict[str, str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return self._written + len(self._samples)

    def add(self, sample: Sample) -> None:
        """Keep a sample; a shard is written when there is enough for one."""
        names = {}
        for name, value in sample.items():
            tensor = value.detach().cpu().contiguous()
            names[name] = digest(tensor)
            self._tensors.setdefault(names[name], tensor)
        self._samples.append(names)
        if sum(tensor.nbytes for tensor in self._tensors.values()) >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is kept; the name of the shard appears when it is complete."""
        if self._samples:
            path = self.folder / f"{self.part:03}-{self.shards:05}.safetensors"
            partial = path.with_suffix(".partial")
            save_file(self._tensors, partial, metadata={"samples": json.dumps(self._samples)})
            os.replace(partial, path)
            self.shards += 1
            self._written += len(self._samples)
            self._tensors, self._samples = {}, []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()  # what was added is whole, however the work ends


def digest(tensor: Tensor) -> str:
    """A name for a tensor's content."""
    content = hashlib.blake2b(tensor.view(-1).view(torch.uint8).numpy().tobytes(), digest_size=16)
    content.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    return content.hexdigest()


def samples_in(path: Path) -> Sequence[Mapping[str, str]]:
    """The samples of a shard: for each its values by name, as names of tensors. Raises InputError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as shard:
            samples: Sequence[Mapping[str, str]] = json.loads(shard.metadata()["samples"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"shard {path} is damaged: {error}; make the cache anew with omni train prepare") from None
    return samples


def read_shard(path: Path) -> Iterator[Sample]:
    """The samples of a shard. Raises InputError if it is damaged."""
    return (place.read() for _, place in places(path))


def places(path: Path) -> Iterator[tuple[Shapes, Place]]:
    """The samples of a shard without their values. Raises InputError if it is damaged."""
    samples = samples_in(path)
    with opened(path) as shard:
        shapes = {key: tuple(shard.get_slice(key).get_shape()) for names in samples for key in names.values()}
    for names in samples:
        yield Shapes(tuple((name, shapes[key]) for name, key in sorted(names.items()))), Place(path, names)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A shard to read from. Raises InputError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise InputError(f"shard {path} is damaged: {error}; make the cache anew with omni train prepare") from None


def write_origin(folder: Path, origin: Origin, name: str = ORIGIN) -> None:
    """Say what a cache was made of."""
    (folder / name).write_text(json.dumps(origin, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def check_origin(folder: Path, origin: Origin, name: str = ORIGIN) -> None:
    """Raise InputError if a cache was made of something else, naming the first difference."""
    path = folder / name
    if not path.is_file():
        raise InputError(f"{folder} holds no cache, or one that was not finished; make it with omni train prepare")
    found = dict(flat(json.loads(path.read_text(encoding="utf-8"))))
    wanted = dict(flat(json.loads(json.dumps(origin))))
    for field in sorted({*found, *wanted}):
        if found.get(field) != wanted.get(field):
            raise InputError(
                f"the cache {folder} was made with another {field}: {short(found.get(field))}, and now it is "
                f"{short(wanted.get(field))}; make it anew with omni train prepare, or name another folder"
            )


def short(value: Any) -> str:
    """A value in few letters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names and values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
