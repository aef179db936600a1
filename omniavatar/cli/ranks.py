"""Several ranks for one `omni run`: starting them, or being one of those that torchrun or Slurm has started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omniavatar.cli.console import say
from omniavatar.distributed.world import World, joined
from omniavatar.errors import InputError

if TYPE_CHECKING:
    from omniavatar.config import RunConfig

SPREADS_CALLS = ("sequence-parallel", "guidance-parallel")


def spread(chosen: Mapping[str, dict[str, Any]], ranks: int) -> dict[str, dict[str, Any]]:
    """The chosen units for this many ranks: with more than one, something must share the transformer's work."""
    if ranks == 1 or any(name in chosen for name in SPREADS_CALLS):
        return dict(chosen)
    return {**chosen, "sequence-parallel": {}}


def check_ranks(ranks: int, config: RunConfig) -> None:
    """Refuse more ranks than there are GPUs, except on the CPU, where any number can be tried."""
    if config.device == "cpu":
        return
    import torch

    found = torch.cuda.device_count()
    if ranks > found:
        raise InputError(f"--gpus is {ranks} and there are {found} GPUs here; to try it without, add --device cpu")


def start_ranks(ranks: int, arguments: Sequence[str]) -> int:
    """Run the same command in `ranks` processes on this host; returns the exit code."""
    from omniavatar.distributed.launch import launch

    code, message = launch(ranks, ["run", *arguments])
    if message:
        say(message)
    return code


def as_rank(world: World, device_type: str, timeout: float, work: Callable[[], int]) -> int:
    """Do the work as one rank of the world.

    What goes wrong is said here, before this rank leaves and the others notice, so that the cause stands first.
    """
    with joined(world, device_type, timeout):
        if world.size == 1:
            return work()
        try:
            return work()
        except BaseException as error:
            message, code = diagnosis_of_rank(error)
            say(f"rank {world.rank}: {message}", error)
            raise SystemExit(code) from None


def diagnosis_of_rank(error: BaseException) -> tuple[str, int]:
    """What to tell about an error of one rank, and its exit code."""
    from omniavatar.cli import diagnosis
    from omniavatar.distributed.launch import LOST

    if is_lost(error):
        return "stopped, because another rank has stopped or did not answer in time", LOST
    message, code = diagnosis(error)
    if not message:
        import traceback

        message = "".join(traceback.format_exception(error)).rstrip()
    return message, code


def is_lost(error: BaseException) -> bool:
    """Whether a collective failed because of the other ranks."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
