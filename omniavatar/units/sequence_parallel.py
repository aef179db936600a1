"""Sequence parallelism: the tokens of one transformer call spread over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.engine.ranks import SpreadsWork
from omniavatar.engine.unit import ALL, PipelineUnit, UnitSettings
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Forward


class SequenceParallel(PipelineUnit, SpreadsWork):
    """Several GPUs for each transformer call: every rank has a part of the tokens.

    Ulysses exchanges tokens for heads before attention, so its degree divides the number of heads; ring passes keys
    and values around. The result is that of one rank for any number of tokens.
    """

    name = "sequence-parallel"
    exact = True
    optional_roles = (ALL,)
    fills_ranks = True

    class Settings(UnitSettings):
        ulysses: int = Field(0, ge=0, description="ranks that exchange heads; 0: as many of a host as divide the heads")
        ring: int = Field(0, ge=0, description="ranks that pass keys and values around; 0: the remaining ones")

    settings: Settings

    def degrees(self, engine: Engine, ranks: int) -> dict[str, int]:
        heads = engine.models.config(engine.plan.experts[0])["num_heads"]
        # All-to-all is for the fast links inside a host.
        ulysses = self.settings.ulysses or (
            ranks // self.settings.ring if self.settings.ring else gcd(ranks, heads, engine.world.local_size)
        )
        ring = self.settings.ring or ranks // ulysses
        if ulysses * ring != ranks or heads % ulysses:
            whose = f"{ranks} ranks" if ranks == engine.world.size else f"{ranks} of {engine.world.size} ranks"
            hint = "; start more with --gpus" if engine.world.size == 1 else ""
            raise PlanError(f"{self} does not fit {whose} and {heads} heads; valid: {valid_splits(ranks, heads)}{hint}")
        return {"ring": ring, "ulysses": ulysses}

    @hookimpl(wrapper=True, tryfirst=True)
    def embed(self, forward: Forward) -> Iterator[None]:
        from omniavatar.distributed.sharding import Sharding

        yield
        forward.shard_tokens(Sharding(forward.engine.groups.sequence, forward.x.shape[1]))

    @hookimpl(wrapper=True, tryfirst=True)
    def run_blocks(self, forward: Forward) -> Iterator[None]:
        from omniavatar.distributed.attention import sequence_wrapper

        assert forward.sharding is not None
        with forward.engine.attention.wrapped(sequence_wrapper(forward.engine.groups, forward.sharding)):
            return (yield)


def valid_splits(ranks: int, heads: int) -> str:
    """The degrees that fit, in words."""
    fitting = [degree for degree in range(1, ranks + 1) if ranks % degree == 0 and heads % degree == 0]
    return "; ".join(f"ulysses={degree}, ring={ranks // degree}" for degree in fitting)
