"""Batches of samples: from a cache on disk that `omni train prepare` has written, or made anew in every step.

    with CacheWriter(folder) as cache:
        cache.add(preparation.sample(take), key)
    write_origin(folder, origin)

    samples = CachedSamples.open(folder, origin, device="cuda")
    batch = samples.draw(generator, 16)

A cache is a folder of safetensors shards and `origin.json`, which says what they were made of. A tensor that several
samples have in common, such as the embedding of the negative prompt, is there once in a shard, and once in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from omniavatar.errors import InputError, OutputError
from omniavatar.media.paths import shown
from omniavatar.training.preparation import Preparation, Sample, Shapes, joined
from omniavatar.training.takes import Source, TakeSettings

ORIGIN = "origin.json"
UNFINISHED = "unfinished.json"
"""In place of `ORIGIN` in a cache that is not complete."""
NOT_HERE = "not here"
"""In an origin: what cannot be told, and so is not compared."""
SHARD_BYTES = 256 * 2**20
FLUSH_SECONDS = 30.0
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
"""Of a number, by the name that safetensors has for its type."""
WHAT_TRAINS = " (what trains decides which units are prepared: train.weights, train.lora)"
ANEW = "remove the cache and make it anew with omni train prepare"
HOLD_GIB = 4.0
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
        settings = self.settings.fitted(self.preparation.engine.geometry).narrowed(draw)
        found: list[Sample] = []
        for _ in range(self.TRIES * count):
            sample = self.source.draw(settings, draw, self.preparation.sample)
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
    """A sample in a cache: its shard, under which name the shard has each value, and how many bytes each has."""

    shard: Path
    names: Mapping[str, str]
    sizes: Mapping[str, int]

    def read(self) -> Sample:
        """Raises InputError if the shard is damaged."""
        with opened(self.shard) as shard:
            return {name: shard.get_tensor(key) for name, key in self.names.items()}

    def value(self, name: str) -> Tensor:
        """One of its values. Raises InputError if the shard is damaged."""
        with opened(self.shard) as shard:
            value: Tensor = shard.get_tensor(self.names[name])
        return value


def memory(group: Sequence[Place]) -> int:
    """Bytes that the values of samples of equal shapes take when each is there once."""
    return sum({(name, key): place.sizes[name] for place in group for name, key in place.names.items()}.values())


@dataclass(frozen=True)
class Held:
    """One value of all samples of a group: those that differ (u ...), and for each sample which one it has (n)."""

    values: Tensor
    which: Tensor

    @classmethod
    def read(cls, group: Sequence[Place], name: str, device: torch.device) -> Held:
        """Read from the disk once for all samples that share it."""
        first = {place.names[name]: place for place in reversed(group)}
        number = {key: row for row, key in enumerate(first)}
        which = torch.tensor([number[place.names[name]] for place in group])
        return cls(torch.cat([place.value(name) for place in first.values()]).to(device), which.to(device))

    def of(self, samples: Tensor) -> Tensor:
        """The values (b ...) of these samples."""
        return self.values[self.which[samples]]


@dataclass(frozen=True)
class CachedSamples:
    """Samples of a cache, those of equal shapes together.

    held: for every group its values on the device, by name; none: they are read from the disk batch by batch.
    """

    groups: tuple[Sequence[Place], ...]
    device: torch.device
    held: tuple[Mapping[str, Held], ...] = ()

    @classmethod
    def open(
        cls, folder: Path, origin: Origin, device: torch.device | str, *, hold_gib: float = HOLD_GIB
    ) -> CachedSamples:
        """All samples of a cache; one that takes up to `hold_gib` GiB of memory is held on the device.

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
        held: list[dict[str, Held]] = []
        if sum(map(memory, groups.values())) <= hold_gib * 2**30:
            held = [{name: Held.read(group, name, target) for name in group[0].names} for group in groups.values()]
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
            return {name: values.of(where) for name, values in self.held[group].items()}
        batch = joined([self.groups[group][index].read() for index in chosen.tolist()])
        return {name: value.to(self.device) for name, value in batch.items()}


class CacheWriter:
    """Adds samples to a cache in shards of about `shard_bytes`; `part` keeps several writers apart.

    The last shard is there, and grows, before it has that size: what was made more than `seconds` ago is on the disk.
    keys: of the samples that are there, whichever writer made them. Its length is their number.
    """

    def __init__(
        self, folder: Path, part: int = 0, shard_bytes: int = SHARD_BYTES, seconds: float = FLUSH_SECONDS
    ) -> None:
        self.folder, self.part, self.shard_bytes, self.seconds = folder, part, shard_bytes, seconds
        self.keys = {key for path in folder.glob("*.safetensors") for key in keys_in(path)}
        before = [path.stem for path in folder.glob(f"{part:03}-*.safetensors")]
        self.shards = 1 + max((int(stem.partition("-")[2]) for stem in before), default=-1)
        self._tensors: dict[str, Tensor] = {}
        self._samples: dict[str, dict[str, str]] = {}
        self._written, self._since = 0, time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write the cache {shown(folder)}: {error.strerror}") from None

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, sample: Sample, key: str) -> None:
        """Keep a sample under a key of its own; a shard is written when there is enough for one, or it is time."""
        names = {}
        for name, value in sample.items():
            tensor = value.detach().cpu().contiguous()
            names[name] = digest(tensor)
            self._tensors.setdefault(names[name], tensor)
        self._samples[key] = names
        self.keys.add(key)
        if sum(tensor.nbytes for tensor in self._tensors.values()) >= self.shard_bytes:
            self.flush()
            self.shards += 1
            self._tensors, self._samples, self._written = {}, {}, 0
        elif time.monotonic() - self._since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is kept; the name of the shard appears when it is complete.

        Raises OutputError if that is not possible, such as when the disk is full.
        """
        if len(self._samples) > self._written:
            path = self.folder / f"{self.part:03}-{self.shards:05}.safetensors"
            partial = path.with_suffix(".partial")
            try:
                partial.write_bytes(save(self._tensors, metadata={"samples": json.dumps(self._samples)}))
                os.replace(partial, path)
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise OutputError(
                    f"cannot write {shown(path)}: {error.strerror}; what was written before is kept, and when that is "
                    "mended the same command goes on"
                ) from None
            self._written = len(self._samples)
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()  # what was added is whole, however the work ends


def digest(tensor: Tensor) -> str:
    """A name for a tensor's content."""
    content = hashlib.blake2b(tensor.view(-1).view(torch.uint8).numpy().tobytes(), digest_size=16)
    content.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    return content.hexdigest()


def samples_in(path: Path) -> Mapping[str, Mapping[str, str]]:
    """The samples of a shard by key: for each its values by name, as names of tensors.

    Raises InputError if it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as shard:
            samples: Mapping[str, Mapping[str, str]] = json.loads(shard.metadata()["samples"])
            if not isinstance(samples, dict):
                raise TypeError("its samples have no keys")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"shard {path} is damaged: {error}; {ANEW}") from None
    return samples


def keys_in(path: Path) -> Iterator[str]:
    """The keys of a shard's samples. Raises InputError if it is damaged."""
    return iter(samples_in(path))


def read_shard(path: Path) -> Iterator[Sample]:
    """The samples of a shard. Raises InputError if it is damaged."""
    return (place.read() for _, place in places(path))


def places(path: Path) -> Iterator[tuple[Shapes, Place]]:
    """The samples of a shard without their values. Raises InputError if it is damaged."""
    samples = samples_in(path).values()
    with opened(path) as shard:
        slices = {key: shard.get_slice(key) for names in samples for key in names.values()}
        shapes = {key: tuple(found.get_shape()) for key, found in slices.items()}
        sizes = {key: math.prod(shapes[key]) * BYTES[found.get_dtype()] for key, found in slices.items()}
    for names in samples:
        own = {name: sizes[key] for name, key in names.items()}
        yield Shapes(tuple((name, shapes[key]) for name, key in sorted(names.items()))), Place(path, names, own)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A shard to read from. Raises InputError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise InputError(f"shard {path} is damaged: {error}; {ANEW}") from None


def write_origin(folder: Path, origin: Origin, name: str = ORIGIN) -> None:
    """Say what a cache was made of."""
    try:
        (folder / name).write_text(json.dumps(origin, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the cache {shown(folder)}: {error.strerror}; choose another folder") from None


def check_origin(folder: Path, origin: Origin, name: str = ORIGIN) -> None:
    """Raise InputError if a cache was made of something else, naming the first difference."""
    path = folder / name
    if not path.is_file():
        raise InputError(f"{folder} holds no cache, or one that was not finished; make it with omni train prepare")
    found = dict(flat(json.loads(path.read_text(encoding="utf-8"))))
    wanted = dict(flat(json.loads(json.dumps(origin))))
    for field in sorted({*found, *wanted}):
        if NOT_HERE not in (found.get(field), wanted.get(field)) and found.get(field) != wanted.get(field):
            raise InputError(
                f"the cache {folder} was made with another {field}: {short(found.get(field))}, and now it is "
                f"{short(wanted.get(field))}; set that back{WHAT_TRAINS if field.startswith('units.') else ''}, or "
                f"{ANEW}, or name another folder"
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
