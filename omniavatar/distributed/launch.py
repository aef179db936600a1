"""Starting ranks on this host with torch's elastic agent, and telling why they ended."""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from omniavatar.distributed.leaving import LOST, Word, is_ignored
from omniavatar.distributed.world import RUN_PREFIX, WORD_FILE

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

POLL_SECONDS = 0.1
SIGNALLED = 128
OUT_OF_MEMORY = 3
SAID = (1, 2, OUT_OF_MEMORY)
"""Exit codes of the command line, which has told the user why."""
PASSED_ON = (signal.SIGTERM, signal.SIGINT)
"""Signals by which the agent ends the other ranks."""
CATCHES = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
"""Signals for which the agent installs handlers."""


@dataclass(frozen=True)
class End:
    """How the ranks ended: an exit code, why, and what became of their work."""

    code: int = 0
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def launch(ranks: int, arguments: Sequence[str]) -> End:
    """Run `omni ARGUMENTS` in `ranks` processes until all have ended; if one fails the others are stopped.

    A signal is passed on to them and ends them in the same way; one that is ignored here is ignored by all.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    agent = logging.getLogger("torch.distributed.elastic")
    agent.addHandler(logging.NullHandler())  # what it says of ranks that end is said better below
    agent.propagate = False
    with TemporaryDirectory(prefix=RUN_PREFIX) as folder, ignored_signals_blocked():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id=RUN_PREFIX + str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",  # a host's own name need not resolve
            max_restarts=0,
            monitor_interval=POLL_SECONDS,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "omniavatar", *arguments)
        except ChildFailedError as error:
            return end_of(error.failures, Word.read_all(Path(folder), WORD_FILE))
        except SignalException as error:
            return end_by_signal(error.sigval, Word.read_all(Path(folder), WORD_FILE))
    return End()


@contextmanager
def ignored_signals_blocked() -> Iterator[None]:
    """Keep signals that are ignored from the handlers that the agent installs, whatever is ignored here.

    The processes that it starts inherit that. Only SIGTERM, by which the agent ends them, must reach them: see
    `listen_to_agent`.
    """
    ignored = {number for number in CATCHES if is_ignored(number)}
    if not ignored or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)  # this also drops those that have come
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listen_to_agent() -> None:
    """Let the signals by which the agent ends this rank arrive, where its user ignores them."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def end_of(failures: Mapping[int, ProcessFailure], words: Sequence[Word]) -> End:
    """What to tell after some rank has failed: errors of their own first, then who was killed, then who was late."""
    notes = tuple(note for word in words for note in word.notes)
    own = [word for word in words if word.code not in (LOST, *(SIGNALLED + number for number in PASSED_ON))]
    if own:
        first_to_say = {_cause(word): word for word in reversed(own)}
        causes = [f"rank {word.rank}: {word.message}" for word in own if first_to_say[_cause(word)] is word]
        return End(own[0].code, tuple(causes), notes)
    mute = [failure for rank, failure in failures.items() if rank not in {word.rank for word in words}]
    by_itself = [failure for failure in mute if -failure.exitcode not in PASSED_ON]
    if by_itself:
        code, cause = end_of_mute(by_itself[0])
        return End(code, (cause,) if cause else (), notes)
    placed = [word for word in words if word.where]
    behind = min((word.progress for word in placed), default=0)
    late = [
        f"rank {word.rank} kept the others waiting for longer than --timeout; it was at {word.where}"
        for word in placed
        if word.progress == behind
    ]
    return End(LOST, tuple(late or [f"rank {word.rank}: {word.message}" for word in words[:1]]), notes)


def _cause(word: Word) -> str:
    """What is the same for ranks that end for one reason; how much memory was free differs from rank to rank."""
    return "out of memory" if word.code == OUT_OF_MEMORY else word.message


def end_of_mute(failure: ProcessFailure) -> tuple[int, str]:
    """Exit code and cause of a rank that has left no word: killed, or ended by a library; empty if it has told why."""
    rank, code = f"rank {failure.local_rank}", failure.exitcode
    if code in SAID:
        return code, ""
    if code > 0:
        return code, f"{rank} ended with exit code {code} and did not say why"
    memory = "; was there enough memory?" if -code == signal.SIGKILL else ""
    return SIGNALLED - code, f"{rank} was ended by {signal.Signals(-code).name}{memory}"


def end_by_signal(number: signal.Signals, words: Sequence[Word]) -> End:
    """What to tell after a signal to the launcher."""
    message = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    return End(SIGNALLED + number, (message,), tuple(note for word in words for note in word.notes))
