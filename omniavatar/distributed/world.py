"""The world of ranks: where this process stands in it (torchrun, Slurm or alone), joining and leaving.

This is the only file that reads environment variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar.errors import InputError

if TYPE_CHECKING:
    import torch

PORT = 29500
RUN_PREFIX = "omni-run-"
"""How the names of runs begin that `launch` has started."""
WORD_FILE = "word.json"
NCCL_PATIENCE = 60.0
"""Seconds that NCCL waits longer: after its time-out it aborts the process, and what was finished would be lost."""


@dataclass(frozen=True)
class World:
    """Where this process stands: `rank` of `size`, of which `local_size` are on its host.

    local_rank: which of the GPUs that this process sees is its own.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = PORT

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0


ALONE = World()


def place(environment: Mapping[str, str] = os.environ) -> World:
    """Where torchrun or Slurm has put this process; alone without them."""
    if int(environment.get("WORLD_SIZE") or 1) > 1 and "RANK" in environment:
        return World(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", environment["RANK"])),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"])),
            address=environment.get("MASTER_ADDR", "127.0.0.1"),
            port=int(environment.get("MASTER_PORT", PORT)),
        )
    # Set inside `srun` only: a batch script that merely owns several tasks is alone.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return World(
            rank=int(environment["SLURM_PROCID"]),
            size=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=0 if sees_one_gpu(environment) else int(environment.get("SLURM_LOCALID", "0")),
            local_size=first_count(environment.get("SLURM_STEP_TASKS_PER_NODE", "1")),
            address=first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1")),
            port=slurm_port(environment),
        )
    return ALONE


def sees_one_gpu(environment: Mapping[str, str]) -> bool:
    """Whether Slurm shows each task one GPU only (`--gpus-per-task 1`), which is then number 0."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    return bool(visible) and "," not in visible


def first_count(tasks_per_node: str) -> int:
    """Tasks on the first host, of a list such as "8(x2),4"."""
    return int(re.split(r"[(,]", tasks_per_node)[0])


def slurm_port(environment: Mapping[str, str]) -> int:
    """A port that several jobs on one host, and several steps of one job, are unlikely to share."""
    job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return PORT + (31 * job + step) % 1000


def first_host(node_list: str) -> str:
    """The first host of a Slurm node list: "gpu[03-05,9],x" -> "gpu03"."""
    first = re.match(r"([^,\[]|\[[^\]]+\])+", node_list)
    if first is None:
        raise InputError(f"cannot read the Slurm node list '{node_list}'")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def word_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where `launch` looks for what this rank has to say about its end; None if something else has started it."""
    if not environment.get("TORCHELASTIC_RUN_ID", "").startswith(RUN_PREFIX):
        return None
    return Path(environment["TORCHELASTIC_ERROR_FILE"]).with_name(WORD_FILE)


def tells_for_all(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process tells the user what every rank finds in the same way."""
    return place(environment).is_main and word_file(environment) is None


@contextmanager
def joined(world: World, device: torch.device, timeout: float) -> Iterator[None]:
    """Be a member of the process group of `world`; nothing for a world of one.

    timeout: seconds after which a collective whose other ranks do not come is an error on this rank; on CUDA, where the
    CPU does not wait for collectives, see `leaving.idle_limit`.
    An error leaves the group as it is, since leaving it may wait for ranks that are gone; the process should end.
    """
    if world.size == 1:
        yield
        return
    import torch
    from torch import distributed

    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group(
            "nccl" if is_cuda else "gloo",
            init_method=f"tcp://{world.address}:{world.port}" if "TORCHELASTIC_RUN_ID" not in os.environ else "env://",
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout + NCCL_PATIENCE * is_cuda),
        )
    except distributed.DistError as error:
        meeting = f"{world.address}:{world.port}"
        reason = str(error).partition("\n")[0]
        if "EADDRINUSE" in str(error):
            raise InputError(f"the port of {meeting} is taken; set MASTER_PORT to another one") from None
        raise InputError(
            f"not all {world.size} ranks have met at {meeting} within {timeout:g} s ({reason}); start them all, or "
            "give a longer --timeout"
        ) from None
    yield
    distributed.barrier(device_ids=[device.index] if is_cuda else None)
    distributed.destroy_process_group()


def common(found: Sequence[Any], world: World) -> list[Any]:
    """What all ranks have found, in this rank's order. All ranks call this together."""
    if world.size == 1:
        return list(found)
    from torch import distributed

    of_all: list[Any] = [None] * world.size
    distributed.all_gather_object(of_all, list(found))
    return [item for item in found if all(item in of_one for of_one in of_all)]
