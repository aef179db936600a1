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
SHARD_BYTES = 256 * 2**20
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
class CachedSamples:
    """Samples of a cache, in memory, those of equal shapes together: name to (n ...)."""

    groups: tuple[Mapping[str, Tensor], ...]
    device: torch.device

    @classmethod
    def open(cls, folder: Path, origin: Origin, device: torch.device | str) -> CachedSamples:
        """All samples of a cache. Raises InputError if it was made of something else, naming what."""
        check_origin(folder, origin)
        groups: dict[Shapes, list[Sample]] = defaultdict(list)
        for path in sorted(folder.glob("*.safetensors")):
            for sample in read_shard(path):
                groups[Shapes.of(sample)].append(sample)
        if not groups:
            raise InputError(f"the cache {folder} has no samples; make it with omni train prepare")
        place = torch.device(device)
        together = [{name: value.to(place) for name, value in joined(group).items()} for group in groups.values()]
        return cls(tuple(together), place)

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Samples in every group."""
        return [len(next(iter(group.values()))) for group in self.groups]

    def draw(self, draw: torch.Generator, count: int) -> dict[str, Tensor]:
        """A group, with the chance that its size gives it, and samples of it."""
        group = int(torch.multinomial(torch.tensor(self.sizes, dtype=torch.float64), 1, generator=draw))
        chosen = torch.randint(self.sizes[group], (count,), generator=draw).to(self.device)
        return {name: values[chosen] for name, values in self.groups[group].items()}


class CacheWriter:
    """Adds samples to a cache in shards of about `shard_bytes`; `part` keeps several writers apart."""

    def __init__(self, folder: Path, part: int = 0, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.part, self.shard_bytes = folder, part, shard_bytes
        self.shards = 0
        self._tensors: dict[str, Tensor] = {}
        self._samples: list[dict[str, str]] = []
        folder.mkdir(parents=True, exist_ok=True)

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
            self._tensors, self._samples = {}, []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()


def digest(tensor: Tensor) -> str:
    """A name for a tensor's content."""
    content = hashlib.blake2b(tensor.view(-1).view(torch.uint8).numpy().tobytes(), digest_size=16)
    content.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    return content.hexdigest()


def read_shard(path: Path) -> Iterator[Sample]:
    """The samples of a shard. Raises InputError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as shard:
            samples: Sequence[Mapping[str, str]] = json.loads(shard.metadata()["samples"])
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"shard {path} is damaged: {error}; make the cache anew with omni train prepare") from None
    for names in samples:
        yield {name: tensors[key] for name, key in names.items()}


def write_origin(folder: Path, origin: Origin) -> None:
    """Say what a cache was made of."""
    (folder / ORIGIN).write_text(json.dumps(origin, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def check_origin(folder: Path, origin: Origin) -> None:
    """Raise InputError if a cache was made of something else, naming the first difference."""
    path = folder / ORIGIN
    if not path.is_file():
        raise InputError(f"{folder} holds no cache, or one that was not finished; make it with omni train prepare")
    found = dict(flat(json.loads(path.read_text(encoding="utf-8"))))
    wanted = dict(flat(json.loads(json.dumps(origin))))
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"the cache {folder} was made with another {name}: {short(found.get(name))}, and now it is "
                f"{short(wanted.get(name))}; make it anew with omni train prepare, or name another folder"
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
