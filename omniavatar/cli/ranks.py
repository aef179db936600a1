"""Several ranks for one `omni run`: starting them, or being one of those that torchrun or Slurm has started."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NoReturn

from omniavatar.cli.console import say
from omniavatar.distributed.leaving import LOST, Stopped, Stuck, Word, idle_limit, leave, stoppable
from omniavatar.distributed.world import World, joined, word_file
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch

    from omniavatar.config import RunConfig
    from omniavatar.engine.scopes import Job

FEW_RANKS = 8
"""So many share one core well enough to try a split."""
RANK_BYTES = 2**29
"""What a rank takes at least: Python, torch and the built-in avatar."""
LOST_SIGNS = ("timed out", "timeout", "closed", "reset", "refused", "broken pipe", "aborted", "remote process")
"""How exchanges say that the other side is gone or late."""


def check_ranks(world: World, config: RunConfig) -> None:
    """Refuse several ranks on one GPU, other ranks than have been started, and more than this machine can hold."""
    asked = config.gpus
    ranks = max(asked, world.size)
    if ranks > 1 and config.device.startswith("cuda:"):
        raise InputError(f"there are {ranks} ranks and --device is the one GPU '{config.device}'; leave --device out")
    if world.size > 1:
        if asked not in (1, world.size):
            raise InputError(f"--gpus is {asked} and {world.size} ranks have been started; leave --gpus out")
        return
    if asked == 1:
        return
    if config.device == "cpu":
        check_cpu(asked)
        return
    import torch

    found = torch.cuda.device_count()
    if asked > found:
        raise InputError(f"--gpus is {asked} and there are {found} GPUs here; to try it without, add --device cpu")


def check_cpu(asked: int) -> None:
    """Refuse more ranks on the CPU than it has cores or memory for; up to `FEW_RANKS` can be tried anywhere."""
    from omniavatar.engine.out_of_memory import host_memory

    cores = available_cores()
    if asked > max(cores, FEW_RANKS):
        raise InputError(
            f"--gpus is {asked} and with --device cpu there are up to {max(cores, FEW_RANKS)} here, for {cores} cores"
        )
    free, _ = host_memory()
    if free is not None and asked * RANK_BYTES > free:
        raise InputError(
            f"--gpus is {asked} and with --device cpu there are up to {max(1, free // RANK_BYTES)} here, for "
            f"{free / 2**30:.1f} GiB of free memory"
        )


def available_cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_ranks(ranks: int, command: str, arguments: Sequence[str]) -> int:
    """Run the command with these arguments in `ranks` processes on this host; returns the exit code."""
    from omniavatar.distributed.launch import launch

    end = launch(ranks, [command, *arguments])
    if end.causes or end.notes:
        cause = end.causes[0] if end.causes else ""
        say(("\n" if "\n" in cause else "; ").join(filter(None, [cause, *end.notes])))
    for cause in end.causes[1:]:
        say(cause)
    return end.code


def as_rank(world: World, device: torch.device, timeout: float, work: Callable[[], int], rescue: Rescue) -> int:
    """Do the work as one rank of the world.

    timeout: seconds that ranks wait for each other. rescue: keeps what was finished when the thread that works does not
    answer.
    What goes wrong is said before this rank leaves and the others notice.
    """
    if world.size == 1:
        return work()

    def give_up(error: BaseException) -> NoReturn:
        rescue(error)
        leave(speak(world, error, rescue.progress))

    limit = idle_limit(rescue.idle, timeout, give_up) if device.type == "cuda" else nullcontext()
    with stoppable(give_up):
        try:
            with joined(world, device, timeout):
                rescue.note()
                with limit:
                    return work()
        except BaseException as error:
            leave(speak(world, error, rescue.progress))


def speak(world: World, error: BaseException, progress: int = 0) -> int:
    """Tell about the error that ends this rank, or leave word for who tells; returns the exit code."""
    message, code = diagnosis_of_rank(error)
    where = getattr(error, "where", "")
    word = Word(world.rank, code, message, tuple(getattr(error, "__notes__", ())), where, progress)
    file = word_file()
    if file is not None:
        word.leave(file)
    else:
        say(f"rank {world.rank}: {message}", error)
    return code


def diagnosis_of_rank(error: BaseException) -> tuple[str, int]:
    """What to tell about an error of one rank, and its exit code."""
    from omniavatar.cli import diagnosis

    if isinstance(error, Stopped):
        return str(error), 128 + error.number
    if isinstance(error, Stuck):
        return str(error), LOST
    if is_lost(error):
        return f"another rank has stopped or did not answer in time ({first_line(error)})", LOST
    message, code = diagnosis(error)
    return message or "".join(traceback.format_exception(error)).rstrip(), code


def is_lost(error: BaseException) -> bool:
    """Whether an exchange failed because the other ranks did not come or have gone."""
    from torch.distributed import DistError

    is_exchange = isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
    return is_exchange and any(sign in str(error).lower() for sign in LOST_SIGNS)


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return str(error).strip().partition("\n")[0]


class Rescue:
    """Observes an engine, so that a job can be closed from outside: what it had finished is kept.

    progress: what was got done so far, mostly hooks that the engine has called, by which ranks can be compared.
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self.progress = 0
        self._time = time.monotonic()

    def idle(self) -> float:
        """Seconds since something was got done."""
        return time.monotonic() - self._time

    def note(self) -> None:
        """Something is done, such as a hook or a model that is loaded."""
        self.progress += 1
        self._time = time.monotonic()

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self.note()
        self.job = job

    @hookimpl
    def begin_window(self) -> None:
        self.note()

    @hookimpl
    def before_step(self) -> None:
        self.note()

    @hookimpl
    def embed(self) -> None:
        self.note()

    @hookimpl
    def before_block(self) -> None:
        self.note()

    @hookimpl
    def after_step(self) -> None:
        self.note()

    @hookimpl
    def output_frames(self) -> None:
        self.note()

    @hookimpl
    def end_window(self) -> None:
        self.note()

    @hookimpl(trylast=True)
    def end_job(self) -> None:
        self.note()
        self.job = None

    def __call__(self, error: BaseException) -> None:
        if self.job is not None:
            self.job.resources.__exit__(type(error), error, None)
