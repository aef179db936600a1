"""Caches: what goes in comes out, once for all that samples share, and one of something else is refused by name."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from omniavatar.errors import InputError, OutputError
from omniavatar.testing.tiny import TinyModels
from omniavatar.training.preparation import CLEAN, Shapes
from omniavatar.training.samples import (
    NOT_HERE,
    CachedSamples,
    CacheWriter,
    LiveSamples,
    check_origin,
    read_shard,
    write_origin,
)
from omniavatar.training.start import Starting, StartSettings
from omniavatar.training.takes import Choice, Take, TakeSettings
from omniavatar.training.trainer import generator
from tests.training.scenes import Striped, diffusion

ORIGIN = {"units": {"audio": "audio(silence=0)"}, "weights": {"vae": "abc"}, "samples": {"frames": 9}}


def sample(number: int, frames: int = 3) -> dict[str, Tensor]:
    return {CLEAN: torch.full((1, 2, frames, 1, 1), float(number)), "text": torch.ones(1, 4, 8)}


def cache(folder: Path, samples: list[dict[str, Tensor]], **options: Any) -> Path:
    with CacheWriter(folder, **options) as writer:
        for number, one in enumerate(samples):
            writer.add(one, str(number))
    write_origin(folder, ORIGIN)
    return folder


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    samples = [sample(n) for n in range(5)]
    cache(tmp_path, samples, shard_bytes=150)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    found = [one for shard in shards for one in read_shard(shard)]
    assert len(found) == 5
    assert all(a[name].equal(b[name]) for a, b in zip(found, samples, strict=True) for name in a)


def test_what_samples_share_is_stored_once(tmp_path: Path) -> None:
    big = torch.randn(1, 1000)
    one = cache(tmp_path / "one", [{CLEAN: torch.zeros(1, 1), "text": big}])
    many = cache(tmp_path / "many", [{CLEAN: torch.full((1, 1), float(n)), "text": big} for n in range(20)])
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (one, many)]
    assert sizes[1] < sizes[0] + 4000


def test_a_batch_has_one_shape_and_each_sample_its_chance(tmp_path: Path) -> None:
    folder = cache(tmp_path, [*(sample(n) for n in range(6)), *(sample(n, frames=5) for n in range(6, 8))])
    samples = CachedSamples.open(folder, ORIGIN, "cpu")
    assert len(samples) == 8
    assert sorted(samples.sizes) == [2, 6]
    seen = [0] * 8
    for seed in range(400):
        batch = samples.draw(generator(seed), 3)
        assert batch[CLEAN].shape[2] in (3, 5)
        assert batch["text"].shape == (3, 4, 8)
        for value in batch[CLEAN][:, 0, 0, 0, 0].tolist():
            seen[int(value)] += 1
    assert min(seen) > 0.7 * 150
    assert max(seen) < 1.3 * 150


def test_a_large_cache_is_read_from_the_disk(tmp_path: Path) -> None:
    folder = cache(tmp_path, [*(sample(n) for n in range(6)), *(sample(n, frames=5) for n in range(6, 8))])
    held, read = (CachedSamples.open(folder, ORIGIN, "cpu", hold_gib=gib) for gib in (1.0, 0.0))
    assert held.held
    assert not read.held
    for seed in range(20):
        one, other = held.draw(generator(seed), 3), read.draw(generator(seed), 3)
        assert all(other[name].equal(value) for name, value in one.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": {"vae": "xyz"}}, 'another weights.vae: "abc", and now it is "xyz"'),
        ({"samples": {"frames": 17}}, "another samples.frames: 9, and now it is 17"),
        ({"units": {"audio": "audio"}}, "another units.audio"),
        ({"more": 1}, "another more: null, and now it is 1"),
    ],
)
def test_a_cache_of_something_else_is_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = cache(tmp_path, [sample(0)])
    with pytest.raises(InputError, match="was made with") as caught:
        CachedSamples.open(folder, {**ORIGIN, **change}, "cpu")
    assert words in str(caught.value)


def test_an_unfinished_empty_or_damaged_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no cache, or one that was not finished"):
        CachedSamples.open(tmp_path, ORIGIN, "cpu")
    write_origin(tmp_path, ORIGIN)
    with pytest.raises(InputError, match="has no samples"):
        CachedSamples.open(tmp_path, ORIGIN, "cpu")
    (tmp_path / "000-00000.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="is damaged"):
        CachedSamples.open(tmp_path, ORIGIN, "cpu")


def interrupted(folder: Path) -> None:
    with CacheWriter(folder) as writer:
        writer.add(sample(0), "0/0")
        raise KeyboardInterrupt


def test_what_was_added_is_kept_and_added_to(tmp_path: Path) -> None:
    """However the work ends; it becomes a cache with its origin."""
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path)
    with pytest.raises(InputError, match="not finished"):
        CachedSamples.open(tmp_path, ORIGIN, "cpu")
    with CacheWriter(tmp_path) as writer:
        assert writer.keys == {"0/0"}
        writer.add(sample(1), "1/0")
    write_origin(tmp_path, ORIGIN)
    assert len(CachedSamples.open(tmp_path, ORIGIN, "cpu")) == 2


class Clips:
    """Striped clips of several lengths."""

    def __len__(self) -> int:
        return 2

    def draw(self, settings: TakeSettings, draw: torch.Generator, make: Any) -> Any:
        frames = 25 if int(torch.randint(2, (), generator=draw)) else 7
        return make(Take.of(Striped(frames=frames), Choice.draw(frames, settings, draw)))

    def each(self, settings: TakeSettings, share: Any, make: Any) -> Any:
        raise NotImplementedError


def test_live_samples_of_one_shape_are_found(tmp_path: Path) -> None:
    run = diffusion(tmp_path)
    samples = LiveSamples(run.preparation(), Clips(), run.config.samples)
    first, again = (samples.draw(generator(3), 2) for _ in range(2))
    assert len(first[CLEAN]) == 2
    assert all(first[name].equal(again[name]) for name in first)


def test_cached_and_live_samples_are_the_same(tmp_path: Path) -> None:
    run = diffusion(tmp_path)
    taken = Take.of(Striped(), Choice(4, 9, 5, 20))
    live = run.preparation().sample(taken)
    with CacheWriter(tmp_path / "cache") as writer:
        writer.add(diffusion(tmp_path).preparation().sample(taken), "0/0")
    write_origin(tmp_path / "cache", run.origin())
    cached = CachedSamples.open(tmp_path / "cache", run.origin(), "cpu").draw(generator(0), 1)
    assert Shapes.of(live) == Shapes.of(cached)
    assert all(cached[name].equal(live[name]) for name in live)


def test_other_weights_make_another_origin(tmp_path: Path) -> None:
    origin = json.loads(json.dumps(diffusion(tmp_path).origin()))
    assert set(origin["weights"]) == {"vae", "text_encoder", "audio_encoder"}
    models, other = TinyModels(), TinyModels(seed=21)
    assert models.identity("vae") == TinyModels().identity("vae") != other.identity("vae")


def test_what_training_starts_from_is_in_the_origin(tmp_path: Path) -> None:
    """Weights by their content, and a network that no model file has."""
    for name in ("v1", "v2"):
        save_file({"weight": torch.full((3,), float(name[1]))}, tmp_path / f"{name}.safetensors")
    starts = [{}, *({"vae": {"weights": tmp_path / f"{name}.safetensors"}} for name in ("v1", "v2"))]
    vaes = {diffusion(tmp_path, start=start).origin()["weights"]["vae"] for start in starts}
    assert len(vaes) == 3
    (tmp_path / "v1.safetensors").rename(tmp_path / "v3.safetensors")
    assert (
        diffusion(tmp_path, start={"vae": {"weights": tmp_path / "v3.safetensors"}}).origin()["weights"]["vae"] in vaes
    )
    kind = "omniavatar.models.audio_adapter:AudioAdapter"
    new = [StartSettings(network=kind, config={"dim": dim}) for dim in (16, 32)]
    told = {Starting(TinyModels(), {"new": start}, seed).identity("new") for start in new for seed in (0, 1)}
    assert len(told) == 4


def test_what_cannot_be_told_is_not_compared(tmp_path: Path) -> None:
    write_origin(tmp_path, {"clips": {"files": "abc"}, "more": 1})
    check_origin(tmp_path, {"clips": {"files": NOT_HERE}, "more": 1})
    with pytest.raises(InputError, match="another more"):
        check_origin(tmp_path, {"clips": {"files": NOT_HERE}, "more": 2})


def test_the_last_shard_is_there_before_it_is_full(tmp_path: Path) -> None:
    """What a power cut leaves: nothing is lost that was made more than a while ago."""
    writer = CacheWriter(tmp_path, seconds=0, shard_bytes=1000)
    for number in range(6):
        writer.add(sample(number), str(number))
        assert CacheWriter(tmp_path).keys == {str(n) for n in range(number + 1)}
    assert len(list(tmp_path.iterdir())) < 6
    patient = CacheWriter(tmp_path / "patient", seconds=60)
    patient.add(sample(0), "0")
    assert not list((tmp_path / "patient").iterdir())


def test_shards_can_be_read_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    cache(tmp_path, [sample(0)])
    (shard,) = tmp_path.glob("*.safetensors")
    assert shard.stat().st_mode == (tmp_path / "origin.json").stat().st_mode


def test_a_full_disk_is_one_line_and_what_is_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = CacheWriter(tmp_path, seconds=0)
    writer.add(sample(0), "0")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"000-00000\.safetensors': No space left on device; what was written before"):
        writer.add(sample(1), "1")
    assert CacheWriter(tmp_path).keys == {"0"}


def test_what_samples_share_is_held_once(tmp_path: Path) -> None:
    """And counts once: the text of a sample is larger than all that the samples do not share."""
    samples = [{CLEAN: torch.full((1, 4), float(n)), "text": torch.ones(1, 1000) * (n % 2)} for n in range(20)]
    cache(tmp_path, samples, shard_bytes=5000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    size = 20 * 16 + 2 * 4000
    held = CachedSamples.open(tmp_path, ORIGIN, "cpu", hold_gib=size / 2**30)
    assert len(held.held[0]["text"].values) == 2
    assert not CachedSamples.open(tmp_path, ORIGIN, "cpu", hold_gib=(size - 1) / 2**30).held
    batch = held.draw(generator(0), 30)
    assert (batch["text"][:, 0] == batch[CLEAN][:, 0] % 2).all()
    assert len(batch[CLEAN].unique()) > 5
