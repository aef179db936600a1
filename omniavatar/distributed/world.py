"""The world of ranks: where this process stands in it (torchrun, Slurm or alone), joining and leaving.

This is the only file that reads environment variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from omniavatar.errors import InputError

PORT = 29500
RUN_PREFIX = "omni-run-"
"""How the names of runs begin that `launch` has started."""
WORD_FILE = "word.json"


@dataclass(frozen=True)
class World:
    """Where this process stands: `rank` of `size`, and `local_rank` among those of its host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = PORT

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0


ALONE = World()


def place(environment: Mapping[str, str] = os.environ) -> World:
    """Where torchrun or Slurm has put this process; alone without them."""
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        return World(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", environment["RANK"])),
            address=environment.get("MASTER_ADDR", "127.0.0.1"),
            port=int(environment.get("MASTER_PORT", PORT)),
        )
    # Set inside `srun` only: a batch script that merely owns several tasks is alone.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return World(
            rank=int(environment["SLURM_PROCID"]),
            size=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environment.get("SLURM_LOCALID", "0")),
            address=first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1")),
            port=PORT + int(environment.get("SLURM_JOB_ID", "0")) % 1000,
        )
    return ALONE


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


@contextmanager
def joined(world: World, device_type: str, timeout: float) -> Iterator[None]:
    """Be a member of the process group of `world`; nothing for a world of one.

    timeout: seconds after which a collective whose other ranks do not come is an error on this rank.
    An error leaves the group as it is, since leaving it may wait for ranks that are gone; the process should end.
    """
    if world.size == 1:
        yield
        return
    import torch
    from torch import distributed

    is_cuda = device_type == "cuda"
    if is_cuda:
        torch.cuda.set_device(world.local_rank)
    try:
        distributed.init_process_group(
            "nccl" if is_cuda else "gloo",
            init_method=f"tcp://{world.address}:{world.port}" if "TORCHELASTIC_RUN_ID" not in os.environ else "env://",
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout),
        )
    except distributed.DistError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"rank {world.rank} has not met all {world.size} ranks at {world.address}:{world.port} "
            f"within {timeout:g} s ({reason}); start them all, or give a longer --timeout"
        ) from None
    yield
    distributed.barrier(device_ids=[world.local_rank] if is_cuda else None)
    distributed.destroy_process_group()
