"""Several ranks for one `omni run`: starting them, or being one of those that torchrun or Slurm has started."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from omniavatar.cli.console import say
from omniavatar.distributed.leaving import LOST, Stopped, Stuck, Word, idle_limit, leave, stoppable
from omniavatar.distributed.world import World, joined, word_file
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch

    from omniavatar.config import RunConfig
    from omniavatar.engine.scopes import Job

SPREADS_CALLS = ("sequence-parallel", "guidance-parallel")


def spread(chosen: Mapping[str, dict[str, Any]], ranks: int) -> dict[str, dict[str, Any]]:
    """The chosen units for this many ranks: with more than one, something must share the transformer's work."""
    if ranks == 1 or any(name in chosen for name in SPREADS_CALLS):
        return dict(chosen)
    return {**chosen, "sequence-parallel": {}}


def check_ranks(world: World, config: RunConfig) -> None:
    """Refuse several ranks on one GPU, or other ranks than there are GPUs; on the CPU any number can be tried."""
    asked = config.gpus
    ranks = max(asked, world.size)
    if ranks > 1 and config.device.startswith("cuda:"):
        raise InputError(f"there are {ranks} ranks and --device is the one GPU '{config.device}'; leave --device out")
    if world.size > 1:
        if asked not in (1, world.size):
            raise InputError(f"--gpus is {asked} and {world.size} ranks have been started; leave --gpus out")
        return
    if asked == 1 or config.device == "cpu":
        return
    import torch

    found = torch.cuda.device_count()
    if asked > found:
        raise InputError(f"--gpus is {asked} and there are {found} GPUs here; to try it without, add --device cpu")


def start_ranks(ranks: int, arguments: Sequence[str]) -> int:
    """Run the same command in `ranks` processes on this host; returns the exit code."""
    from omniavatar.distributed.launch import launch

    end = launch(ranks, ["run", *arguments])
    if end.causes or end.notes:
        say("; ".join([*end.causes[:1], *end.notes]))
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
    with stoppable(lambda: give_up(Stopped(signal.SIGTERM, ""))):
        try:
            with joined(world, device, timeout), limit:
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
        return "another rank has stopped or did not answer in time", LOST
    message, code = diagnosis(error)
    return message or "".join(traceback.format_exception(error)).rstrip(), code


def is_lost(error: BaseException) -> bool:
    """Whether a collective failed because of the other ranks."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


class Rescue:
    """Observes an engine, so that a job can be closed from outside: what it had finished is kept.

    progress: hooks that the engine has called so far, by which ranks can be compared.
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self.progress = 0
        self._time = 0.0

    def idle(self) -> float:
        """Seconds since the engine has called a hook; 0 outside of a job."""
        return time.monotonic() - self._time if self.job is not None else 0.0

    def _note(self) -> None:
        self.progress += 1
        self._time = time.monotonic()

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self._note()
        self.job = job

    @hookimpl
    def begin_window(self) -> None:
        self._note()

    @hookimpl
    def before_step(self) -> None:
        self._note()

    @hookimpl
    def embed(self) -> None:
        self._note()

    @hookimpl
    def before_block(self) -> None:
        self._note()

    @hookimpl
    def after_step(self) -> None:
        self._note()

    @hookimpl
    def end_window(self) -> None:
        self._note()

    @hookimpl(trylast=True)
    def end_job(self) -> None:
        self._note()
        self.job = None

    def __call__(self, error: BaseException) -> None:
        if self.job is not None:
            self.job.resources.__exit__(type(error), error, None)
