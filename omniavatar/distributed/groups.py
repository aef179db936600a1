"""Groups of ranks: the world as a grid, neighbours (one host, one link) in its last axis.

The axes are samples (of training) x guidance x ring x ulysses.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from omniavatar.distributed.world import World
from omniavatar.errors import PlanError

AXES = ("samples", "guidance", "ring", "ulysses")


@dataclass(frozen=True)
class Group:
    """Ranks that work together. `handle` is torch's process group, None where this process is alone."""

    rank: int = 0
    size: int = 1
    handle: Any = None

    @classmethod
    def of(cls, handle: Any) -> Group:
        return cls(distributed.get_rank(handle), distributed.get_world_size(handle), handle)

    def global_rank(self, rank: int) -> int:
        """The world's number of this group's rank."""
        return distributed.get_global_rank(self.handle, rank) if self.handle is not None else rank

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, which have one shape."""
        if self.size == 1:
            return [tensor]
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor, group=self.handle)
        return parts

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """The tensor of the rank `source` of this group, in place of ours."""
        if self.size > 1:
            distributed.broadcast(tensor, self.global_rank(source), group=self.handle)
        return tensor


@dataclass(frozen=True)
class Groups:
    """The groups that this rank belongs to; `sequence` is ring x ulysses, the ranks that share one transformer call."""

    world: Group = Group()
    samples: Group = Group()
    guidance: Group = Group()
    ring: Group = Group()
    ulysses: Group = Group()
    sequence: Group = Group()

    @classmethod
    def make(cls, world: World, degrees: Mapping[str, int], device: torch.device) -> Groups:
        """Split the world into a grid with these degrees, missing ones being 1. All ranks call this together.

        Raises PlanError if the degrees do not multiply to the number of ranks.
        """
        shape = grid_shape(degrees, world.size)
        if not distributed.is_initialized() or distributed.get_world_size() != world.size:
            assert world.size == 1, "several ranks must have joined first"
            return cls()  # alone, perhaps in a process that is one of many
        by_xfuser = device.type == "cuda" and importlib.util.find_spec("xfuser") is not None
        groups = cls._by_xfuser(world, shape, device) if by_xfuser else cls._by_torch(shape, device)
        groups.wait_as_long_as_the_world(device)
        return groups

    def wait_as_long_as_the_world(self, device: torch.device) -> None:
        """Give all groups the time-out of the world; torch gives new ones its default."""
        timeout = self.world.handle._get_backend(device).options._timeout
        public: Any = getattr(distributed, "set_timeout", None)  # since torch 2.15
        set_timeout = public or distributed.distributed_c10d._set_pg_timeout
        for group in (self.samples, self.guidance, self.ring, self.ulysses, self.sequence):
            set_timeout(timeout, group.handle)

    @classmethod
    def _by_torch(cls, shape: Sequence[int], device: torch.device) -> Groups:
        mesh = distributed.init_device_mesh(device.type, tuple(shape), mesh_dim_names=AXES)
        by_axis = {axis: Group.of(mesh.get_group(axis)) for axis in AXES}
        sequence = Group.of(mesh["ring", "ulysses"]._flatten("sequence").get_group())
        return cls(world=Group.of(distributed.group.WORLD), sequence=sequence, **by_axis)

    @classmethod
    def _by_xfuser(cls, world: World, shape: Sequence[int], device: torch.device) -> Groups:
        from xfuser.core.distributed import parallel_state

        samples, guidance, ring, ulysses = shape
        parallel_state.init_distributed_environment(
            world_size=world.size, rank=world.rank, local_rank=device.index or 0
        )
        parallel_state.initialize_model_parallel(
            data_parallel_degree=samples,
            classifier_free_guidance_degree=guidance,
            sequence_parallel_degree=ring * ulysses,
            ring_degree=ring,
            ulysses_degree=ulysses,
        )
        sequence = parallel_state.get_sp_group()
        return cls(
            world=Group.of(distributed.group.WORLD),
            samples=Group.of(parallel_state.get_dp_group().device_group),
            guidance=Group.of(parallel_state.get_cfg_group().device_group),
            ring=Group.of(sequence.ring_group),
            ulysses=Group.of(sequence.ulysses_group),
            sequence=Group.of(sequence.device_group),
        )


def grid_shape(degrees: Mapping[str, int], ranks: int) -> tuple[int, ...]:
    """The degrees of all axes. Raises PlanError if they do not multiply to the number of ranks."""
    shape = tuple(degrees.get(axis, 1) for axis in AXES)
    used = math.prod(shape)
    if used != ranks:
        asked = " x ".join(f"{axis} {degree}" for axis, degree in zip(AXES, shape, strict=True) if degree > 1)
        raise PlanError(
            f"the plan spreads its work over {used} of {ranks} ranks{f' ({asked})' if asked else ''}; "
            "add sequence-parallel, which takes those that are left"
        )
    return shape
