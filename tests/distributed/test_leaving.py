"""Signals that end a rank: what was begun is closed, once, and a thread that does not hear is not waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from omniavatar.distributed import leaving
from omniavatar.distributed.leaving import LOST, Stopped, Stuck, idle_limit, stoppable

pytestmark = pytest.mark.usefixtures("interruptible")


def never(error: Stopped) -> None:
    pytest.fail("the main thread has heard the signal")


def too_long(error: Stuck) -> NoReturn:
    pytest.fail("the main thread was not idle")


def sent(number: signal.Signals) -> None:
    """Send a signal to this process and wait for what it does."""
    os.kill(os.getpid(), number)
    time.sleep(0.2)


@contextmanager
def disturbed_closing(closed: list[bool]) -> Iterator[None]:
    """Gets signals while it closes; what it closes is noted."""
    try:
        yield
    finally:
        sent(signal.SIGTERM)
        sent(signal.SIGINT)
        closed.append(True)


def test_a_signal_is_an_error_in_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="ended by SIGTERM") as caught, stoppable(never):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert caught.value.number == signal.SIGTERM
    assert "test_leaving.py, line " in caught.value.where
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_something_has_taken_over_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as training, which ends the update in work first, however long that takes."""
    monkeypatch.setattr(leaving, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(leaving, "leave", never)
    left: list[Stopped] = []
    heard: list[int] = []
    with stoppable(left.append):
        before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        sent(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert not left


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stoppable(never):
        sent(signal.SIGHUP)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("stdout", ["None", "open('/dev/full', 'w')"])
def test_a_rank_leaves_also_where_nothing_can_be_printed(stdout: str) -> None:
    script = (
        f"import sys; sys.stdout = {stdout}; print('x'); from omniavatar.distributed.leaving import leave; leave(3)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 3


def test_closing_is_not_disturbed_by_further_signals() -> None:
    closed = []
    with pytest.raises(Stopped, match="ended by SIGINT"), stoppable(never):  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            closed.append(True)
    assert closed


def test_an_error_that_is_on_its_way_is_not_replaced_by_a_signal() -> None:
    closed = []
    with pytest.raises(KeyError), stoppable(never):  # noqa: PT012
        try:
            raise KeyError
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            closed.append(True)
    assert closed


def test_other_signals_are_none_of_its_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "GRACE_SECONDS", 0.05)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with stoppable(never):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_thread_that_does_not_hear_is_rescued_from_outside() -> None:
    """A mutex that is locked twice stands for a library that waits for other ranks."""
    script = """
import ctypes, threading
from omniavatar.distributed import leaving
leaving.GRACE_SECONDS = 0.2
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
with leaving.stoppable(lambda error: print("kept", error.where, flush=True)):
    lock(mutex)
    print("ready", flush=True)
    lock(mutex)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # so that it is inside the second call
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "kept <string>, line 9, in <module>\n"
        assert process.wait() == LOST
        assert time.monotonic() - begin < 5


def test_a_main_thread_that_is_idle_for_too_long_is_given_up_with_its_place() -> None:
    begin, given_up = time.monotonic(), []

    def give_up(error: Stuck) -> None:
        given_up.append((time.monotonic() - begin, error.where))

    with idle_limit(lambda: time.monotonic() - begin, 0.3, give_up):
        while not given_up and time.monotonic() - begin < 10:
            time.sleep(0.05)
    seconds, where = given_up[0]
    assert 0.3 < seconds < 5
    assert "test_leaving.py" in where
    assert "in test_a_main_thread" in where


def test_a_main_thread_that_is_busy_is_left_alone() -> None:
    with idle_limit(lambda: 0.1, 0.2, too_long):
        time.sleep(0.3)
