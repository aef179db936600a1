"""Groups of ranks: the world as a grid, neighbours (one host, one link) in its last axis.

The axes are samples (of training) x guidance x ring x ulysses.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
    """The groups that this rank belongs to; `sequence` is ring x ulysses, the ranks that share one transformer call.

    They belong to who made them, such as an engine; several can have groups of their own at the same time.
    closing: what gives them back, in this order.
    """

    world: Group = Group()
    samples: Group = Group()
    guidance: Group = Group()
    ring: Group = Group()
    ulysses: Group = Group()
    sequence: Group = Group()
    closing: tuple[Callable[[], None], ...] = field(default=(), compare=False, repr=False)

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
        groups = cls._by_xfuser(shape, device) if by_xfuser else cls._by_torch(shape, device)
        groups.wait_as_long_as_the_world(device)
        return groups

    def close(self) -> None:
        """Give back what the groups hold, such as NCCL's buffers. All ranks call this, when their work is done."""
        for close in self.closing:
            close()

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
        handles = {axis: mesh.get_group(axis) for axis in AXES}
        handles["sequence"] = mesh["ring", "ulysses"]._flatten("sequence").get_group()
        world = distributed.group.WORLD
        own = {id(handle): handle for handle in handles.values() if handle is not world}  # some may be one
        closing = tuple(partial(distributed.destroy_process_group, handle) for handle in own.values())
        return cls(world=Group.of(world), closing=closing, **{name: Group.of(each) for name, each in handles.items()})

    @classmethod
    def _by_xfuser(cls, shape: Sequence[int], device: torch.device) -> Groups:
        """By xfuser's coordinators, without its `initialize_model_parallel`, which serves one engine of a process."""
        from xfuser.core.distributed.group_coordinator import GroupCoordinator
        from xfuser.core.distributed.utils import generate_masked_orthogonal_rank_groups

        def coordinator(*axes: str) -> Any:
            is_in_group = [axis in axes for axis in reversed(AXES)]  # the axis of neighbours comes first
            ranks = generate_masked_orthogonal_rank_groups(math.prod(shape), [*reversed(shape)], is_in_group)
            return GroupCoordinator(ranks, device.index or 0, distributed.get_backend())

        made = {axis: coordinator(axis) for axis in AXES} | {"sequence": coordinator("ring", "ulysses")}
        groups = {name: Group.of(each.device_group) for name, each in made.items()}
        closing = tuple(each.destroy for each in made.values())
        return cls(world=Group.of(distributed.group.WORLD), closing=closing, **groups)


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
