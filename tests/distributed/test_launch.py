"""What the launcher tells about how its ranks have ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from omniavatar.distributed.launch import End, end_by_signal, end_of
from omniavatar.distributed.leaving import LOST, Word

KEPT = "the 9 finished frames are in talk.partial.mp4"
TERMINATED = 128 + signal.SIGTERM
WAITED = Word(0, LOST, "another rank has stopped or did not answer in time", (KEPT,))


def failures(**codes: int) -> dict[int, ProcessFailure]:
    """`failures(r0=4, r1=-9)`: what torch knows of ranks that have ended."""
    ranks = {int(name[1:]): code for name, code in codes.items()}
    return {rank: ProcessFailure(rank, 1000 + rank, code, error_file="") for rank, code in ranks.items()}


def test_a_ranks_own_error_comes_before_what_it_caused() -> None:
    words = [WAITED, Word(1, 2, "bad input")]
    assert end_of(failures(r0=4, r1=2), words) == End(2, ("rank 1: bad input",), (KEPT,))


def test_what_several_ranks_say_is_told_once_with_the_first_to_say_it() -> None:
    words = [Word(2, 3, "out of memory"), Word(0, 2, "bad input"), Word(1, 3, "out of memory here")]
    end = end_of(failures(r0=2, r1=3, r2=3), words)
    assert end == End(3, ("rank 2: out of memory", "rank 0: bad input"), ())


def test_a_rank_that_was_killed_is_named() -> None:
    end = end_of(failures(r0=4, r1=-9), [WAITED])
    assert end == End(137, ("rank 1 was ended by SIGKILL; was there enough memory?",), (KEPT,))


def test_a_rank_that_crashed_is_named() -> None:
    assert end_of(failures(r1=-11), []) == End(139, ("rank 1 was ended by SIGSEGV",))
    assert end_of(failures(r0=4, r1=7), [WAITED]).causes == ("rank 1 ended with exit code 7 and did not say why",)


def test_a_rank_that_ended_before_it_began_has_spoken_for_itself() -> None:
    assert end_of(failures(r0=-15, r1=2), []) == End(2)


def test_a_rank_that_was_late_is_told_with_the_place_where_it_was() -> None:
    words = [WAITED, Word(1, TERMINATED, "ended by SIGTERM", where="unit.py, line 3, in embed")]
    late = "rank 1 kept the others waiting for longer than --timeout; it was at unit.py, line 3, in embed"
    assert end_of(failures(r0=4, r1=TERMINATED), words) == End(LOST, (late,), (KEPT,))


def test_of_ranks_that_all_stood_still_the_one_that_was_behind_is_told() -> None:
    words = [
        Word(0, LOST, "got nothing done", (KEPT,), where="progress.py, line 9, in after_step", progress=70),
        Word(1, LOST, "got nothing done", where="unit.py, line 3, in before_step", progress=12),
        Word(2, TERMINATED, "ended by SIGTERM", where="progress.py, line 9, in after_step", progress=70),
    ]
    late = "rank 1 kept the others waiting for longer than --timeout; it was at unit.py, line 3, in before_step"
    assert end_of(failures(r0=4, r1=4, r2=TERMINATED), words) == End(LOST, (late,), (KEPT,))


def test_without_any_cause_it_says_what_the_first_rank_saw() -> None:
    words = [WAITED, Word(1, TERMINATED, "ended by SIGTERM")]
    assert end_of(failures(r0=4, r1=TERMINATED), words) == End(LOST, (f"rank 0: {WAITED.message}",), (KEPT,))


def test_a_signal_to_the_launcher() -> None:
    words = [Word(0, 130, "ended by SIGINT", (KEPT,)), Word(1, 130, "ended by SIGINT")]
    assert end_by_signal(signal.SIGINT, words) == End(130, ("interrupted",), (KEPT,))
    assert end_by_signal(signal.SIGTERM, []) == End(143, ("ended by SIGTERM",))


def test_words_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    words = [Word(1, 2, "first", where="here"), Word(0, LOST, "second", (KEPT, "and more"))]
    for word in words:
        (tmp_path / str(word.rank)).mkdir()
        word.leave(tmp_path / str(word.rank) / "word.json")
    found = Word.read_all(tmp_path, "word.json")
    assert [(word.rank, word.code, word.message, word.notes, word.where) for word in found] == [
        (word.rank, word.code, word.message, word.notes, word.where) for word in words
    ]


IGNORES_HANGUPS = """
import os, signal
from omniavatar.distributed.launch import ignored_signals_blocked

heard = []
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with ignored_signals_blocked():
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda number, _: heard.append(number))
        os.kill(os.getpid(), number)
assert heard == [signal.SIGTERM], heard
assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
"""


def test_signals_that_are_ignored_do_not_reach_the_handlers_of_the_agent() -> None:
    """In a process of one thread, as the one that starts ranks is: another thread would take the signal."""
    subprocess.run([sys.executable, "-c", IGNORES_HANGUPS], check=True, timeout=60)
