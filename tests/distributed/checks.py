"""What several ranks must agree on with one; every rank of a world calls every check of a group, in this order.

A check makes a video alone and then with all ranks, and returns the worst relative error of latents and pictures of
all windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from omniavatar.distributed.world import World, common
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.engine.unit import PipelineUnit
from omniavatar.models.conversion import Conversion
from omniavatar.models.fp8 import Fp8Blocks
from omniavatar.models.packed import PackedLinear
from omniavatar.models.packed_tensor import PackedTensor
from omniavatar.models.tiling import Tiling
from omniavatar.resources import asset
from omniavatar.units import (
    CfgZeroStar,
    FirstBlockCache,
    Fsdp,
    GuidanceInterval,
    GuidanceParallel,
    Lora,
    SequenceParallel,
    TeaCache,
    VaeParallel,
)
from tests.distributed.scenes import (
    LAYERS,
    Causal,
    Hints,
    Merged,
    RandomModels,
    Recorder,
    Spoiler,
    Texts,
    TokenTimes,
    Video,
    build,
    worst_error,
)
from tests.models.networks import noise


@dataclass(frozen=True)
class Check:
    """A comparison, and the groups of checks that it is in."""

    run: Callable[[World], float]
    groups: tuple[str, ...]


PORTRAIT = asset("demo", "portrait.png")
CHECKS: dict[str, Check] = {}
RANKS = {"quick": 2, "two": 2, "four": 4}
"""By group of checks."""


def check(*worlds: int, quick: bool = False) -> Callable[[Callable[[World], float]], Callable[[World], float]]:
    """Register a check for these numbers of ranks. quick: with two ranks it is one of the few that always run."""
    groups = {2: "quick" if quick else "two", 4: "four"}

    def register(run: Callable[[World], float]) -> Callable[[World], float]:
        CHECKS[run.__name__] = Check(run, tuple(groups[world] for world in worlds))
        return run

    return register


def made_alone(world: World, video: Video) -> Recorder:
    """What the first rank does when it makes the video alone; the others get it from there, since cores are few."""
    recorders = [video.made()[1] if world.is_main else None]
    distributed.broadcast_object_list(recorders)
    assert recorders[0] is not None
    return recorders[0]


def compare(world: World, video: Video, *parallel: PipelineUnit) -> tuple[float, Recorder, Recorder]:
    """The error of the video made by all ranks, what this rank did for it, and what one rank alone does."""
    alone = made_alone(world, video)
    _, together = video.made(*parallel, world=world)
    for mine, expected in zip(together.noise, alone.noise, strict=True):
        assert torch.equal(mine, expected)
    return worst_error(together.results, alone.results), together, alone


def shares(world: World, video: Video, *parallel: PipelineUnit) -> float:
    """`compare`, when every rank computes an equal part of the tokens of every call."""
    error, together, alone = compare(world, video, *parallel)
    assert together.tokens == {-(-count // world.size) for count in alone.tokens}
    assert together.blocks == alone.blocks
    return error


@check(2, 4, quick=True)
def what_all_have_found(world: World) -> float:
    """Not a picture, but it needs ranks as well: they go on with what none of them lacks."""
    mine = [5, 3, 1] if world.is_main else [1, 5, world.rank + 10]
    assert common(mine, world) == ([5, 1] if world.is_main else [1, 5])
    return 0.0


@check(2, 4, quick=True)
def ulysses(world: World) -> float:
    return shares(world, Video(), SequenceParallel(ulysses=world.size))


@check(2, quick=True)
def a_mask_by_address(world: World) -> float:
    video = Video(frames=13, units=[Texts(), Causal()])
    assert worst_error(made_alone(world, video).results, made_alone(world, Video(frames=13)).results) > 1e-4
    return shares(world, video, SequenceParallel(ulysses=world.size))


@check(2, 4, quick=True)
def ring(world: World) -> float:
    return shares(world, Video(), SequenceParallel(ring=world.size))


@check(4)
def ulysses_and_ring(world: World) -> float:
    return shares(world, Video(), SequenceParallel(ulysses=2, ring=2))


def odd_video(**changes: object) -> Video:
    """9 tokens in a call: neither 2 nor 4 divides them."""
    return Video(height=48, width=16, **changes)  # type: ignore[arg-type]


def one_token() -> Video:
    """A picture of one token: all ranks but one have padding only."""
    return Video(frames=1, height=16, width=16, windows=False)


@check(2, 4)
def ulysses_with_fewer_tokens_than_ranks(world: World) -> float:
    return shares(world, one_token(), SequenceParallel(ulysses=world.size))


@check(2, 4, quick=True)
def ring_with_fewer_tokens_than_ranks(world: World) -> float:
    return shares(world, one_token(), SequenceParallel(ring=world.size))


@check(4)
def ulysses_and_ring_with_fewer_tokens_than_ranks(world: World) -> float:
    return shares(world, one_token(), SequenceParallel(ulysses=2, ring=2))


def with_spoilt_padding(world: World, sequence: SequenceParallel) -> float:
    """Noise in the padding reaches nothing. A call has 9 tokens: 1 too few for 2 ranks, 3 for 4."""
    spoiler = Spoiler()
    error, together, _ = compare(world, odd_video(), sequence, spoiler)
    assert together.tokens == {-(-9 // world.size)}
    padding = -9 % world.size
    is_last = world.rank == world.size - 1
    assert spoiler.spoiled == (padding * together.blocks if is_last else 0)
    return error


@check(2, 4)
def ulysses_with_spoilt_padding(world: World) -> float:
    return with_spoilt_padding(world, SequenceParallel(ulysses=world.size))


@check(2, 4)
def ring_with_spoilt_padding(world: World) -> float:
    return with_spoilt_padding(world, SequenceParallel(ring=world.size))


@check(4)
def ulysses_and_ring_with_spoilt_padding(world: World) -> float:
    return with_spoilt_padding(world, SequenceParallel(ulysses=2, ring=2))


@check(2, quick=True)
def guidance_of_two_branches(world: World) -> float:
    error, together, alone = compare(world, Video(), GuidanceParallel())
    assert together.calls == alone.calls / 2
    return error


@check(2)
def guidance_of_three_branches(world: World) -> float:
    error, together, alone = compare(world, Video(audio_scale=5.0), GuidanceParallel())
    assert together.calls == alone.calls * 2 / 3
    return error


@check(2)
def guidance_of_one_branch(world: World) -> float:
    error, together, alone = compare(world, Video(scale=1.0), GuidanceParallel())
    assert together.calls == alone.calls
    return error


@check(4)
def guidance_and_ulysses(world: World) -> float:
    error, together, alone = compare(world, odd_video(audio_scale=5.0), GuidanceParallel(), SequenceParallel(ulysses=2))
    assert together.tokens == {5}
    assert together.calls == alone.calls * 2 / 3
    return error


@check(4)
def guidance_and_ring(world: World) -> float:
    return compare(world, odd_video(), GuidanceParallel(), SequenceParallel(ring=2))[0]


def caching() -> TeaCache:
    """Random weights hear the time step much better than trained ones do."""
    return TeaCache(threshold=0.3, coefficients=(0.1, 0.0))


@check(2, 4, quick=True)
def teacache_and_sequence(world: World) -> float:
    video = odd_video(frames=13, steps=5, units=[Texts(), caching()])
    error, together, alone = compare(world, video, SequenceParallel())
    assert together.blocks == alone.blocks < alone.calls * LAYERS
    return error


@check(2)
def teacache_and_guidance(world: World) -> float:
    video = Video(frames=13, steps=5, audio_scale=5.0, units=[Texts(), caching()])
    return compare(world, video, GuidanceParallel())[0]


def spared(world: World, units: Sequence[PipelineUnit], *spread: PipelineUnit) -> float:
    """The error of a video, some of whose calls run their first block only, others all."""
    error, _, alone = compare(world, Video(audio_scale=5.0, steps=6, units=[Texts(), *units]), *spread)
    assert alone.calls < alone.blocks < alone.calls * LAYERS
    return error


@check(2)
def first_block_cache_and_sequence(world: World) -> float:
    return spared(world, [FirstBlockCache(threshold=0.35)], SequenceParallel())


@check(2)
def first_block_cache_and_branches_on_ranks_with_sharded_weights(world: World) -> float:
    """A rank whose branch is spared still gathers weights for the other one."""
    return spared(world, [FirstBlockCache(threshold=0.35)], GuidanceParallel(), Fsdp())


@check(2)
def branches_that_come_and_go_with_a_cache_and_sharded_weights(world: World) -> float:
    units = [GuidanceInterval(low=0.6, high=0.95), CfgZeroStar(zero_share=0.2), caching()]
    return compare(world, Video(audio_scale=5.0, steps=6, units=[Texts(), *units]), SequenceParallel(), Fsdp())[0]


@check(2)
def lora_beside_sharded_weights(world: World) -> float:
    """What it adds is sharded as well, and its strength changes with the steps on all ranks at once."""
    return compare(world, Video(units=[Texts(), Lora()]), SequenceParallel(), Fsdp())[0]


@check(2)
def scaled_branches_on_ranks(world: World) -> float:
    units = [CfgZeroStar(zero_share=0.2)]
    return compare(world, Video(audio_scale=5.0, steps=5, units=[Texts(), *units]), GuidanceParallel(), Fsdp())[0]


@check(2, 4)
def hints_for_every_token(world: World) -> float:
    video = odd_video(units=[Texts(), Hints(frames=3)])
    return shares(world, video, SequenceParallel(ring=2))


@check(4)
def timesteps_for_every_token(world: World) -> float:
    return shares(world, odd_video(units=[Texts(), TokenTimes()]), SequenceParallel(ulysses=2))


@check(2, 4)
def branches_in_one_batch(world: World) -> float:
    video = odd_video(units=[Texts(negative=7), Merged()])
    return shares(world, video, SequenceParallel())


@check(2, 4)
def many_windows_from_a_picture(world: World) -> float:
    video = odd_video(frames=17, image=PORTRAIT)
    return shares(world, video, SequenceParallel(ulysses=world.size))


@check(2, 4, quick=True)
def vae_rows(world: World) -> float:
    return compare(world, Video(height=48, width=32), SequenceParallel(), VaeParallel())[0]


@check(2, 4)
def vae_of_fewer_rows_than_ranks(world: World) -> float:
    """2 rows of latents."""
    return compare(world, Video(frames=5, height=16, width=32), SequenceParallel(), VaeParallel())[0]


def vae_error(world: World, rows: int, **options: object) -> float:
    """The error of encoding and decoding 5 frames of this many latent rows."""
    engine = Engine(Plan((SequenceParallel(), VaeParallel())), RandomModels(), world=world)
    with torch.inference_mode():
        engine.set_up()
        vae, alone = engine.model("vae"), build("vae")
        latents, pictures = noise(1, 16, 2, rows, 3), noise(1, 3, 5, 8 * rows, 24).clamp(-1, 1)
        made = [vae.encode(pictures, **options), vae.decode(latents, **options)]
        expected = [alone.encode(pictures, **options), alone.decode(latents, **options)]
    return worst_error(made, expected)


@check(2, 4)
def vae_of_odd_rows(world: World) -> float:
    return vae_error(world, 7)


@check(2, 4)
def vae_of_one_row_for_most_ranks(world: World) -> float:
    return vae_error(world, world.size + 1)


@check(2, 4)
def vae_in_tiles(world: World) -> float:
    return vae_error(world, 9, tiling=Tiling(size=(6, 3), stride=(4, 2)))


@check(2, 4)
def vae_of_two_latents_per_pass(world: World) -> float:
    return vae_error(world, 5, latents_per_pass=2)


def local_share(network: Any) -> float:
    """The part of the weights of the blocks that this rank holds."""
    weights = list(network.blocks.parameters())
    share: float = sum(weight.to_local().numel() for weight in weights) / sum(weight.numel() for weight in weights)
    return share


@check(2, 4, quick=True)
def sharded_weights(world: World) -> float:
    video = odd_video()
    alone = made_alone(world, video)
    engine, together = video.made(SequenceParallel(), Fsdp(), world=world, ahead=True)
    for role in ("dit", "text_encoder"):
        assert (
            local_share(engine.model(role)) < 1.05 / world.size
        )  # what does not divide leaves some ranks a little more
    return worst_error(together.results, alone.results)


class Packs(PipelineUnit):
    """Keeps the weights of the transformer's blocks packed, as a quantised file has them."""

    name = "packs"

    def conversion(self, engine: Engine, role: str) -> Conversion | None:
        return PackedBlocks("storage", "tensor") if role == "dit" else None


class PackedBlocks(Fp8Blocks):
    """fp8 numbers with one scale, in layers that know no more of them than of any packed weight."""

    def layer(self, name: str, packed: PackedTensor, bias: torch.Tensor | None) -> PackedLinear:
        return PackedLinear(packed, bias)


@check(2, quick=True)
def sharded_packed_weights(world: World) -> float:
    video = odd_video(units=[Texts(), Packs()])
    alone = made_alone(world, video)
    engine, together = video.made(SequenceParallel(), Fsdp(), world=world, ahead=True)
    assert isinstance(engine.model("dit").blocks[0].ffn[0], PackedLinear)
    assert local_share(engine.model("dit")) < 1.1 / world.size
    return worst_error(together.results, alone.results)


@check(2)
def sharded_weights_and_three_branches(world: World) -> float:
    return compare(world, Video(audio_scale=5.0), GuidanceParallel(), Fsdp())[0]


@check(2, 4)
def everything(world: World) -> float:
    video = odd_video(frames=17, audio_scale=5.0, steps=5, image=PORTRAIT, units=[Texts(), Hints(frames=3), caching()])
    units = [SequenceParallel(), VaeParallel(), Fsdp()]
    if world.size == 4:
        units.insert(0, GuidanceParallel())
    return compare(world, video, *units)[0]
