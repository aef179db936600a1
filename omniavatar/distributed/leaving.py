"""How a rank ends early: because of its own error, because a signal asks it to, or because another rank has gone.

Whoever started the ranks speaks for them: each leaves a word about its end in a file, and `launch` reads them all and
tells the cause first. A rank that torchrun or Slurm has started speaks for itself.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

LOST = 4
"""Exit code of a rank that stops because another one has stopped or does not answer."""
GRACE_SECONDS = 3.0
"""How long the main thread may take to hear a signal; it does not while it waits inside a library."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask to end."""


class Stopped(BaseException):
    """A signal asked this rank to end. `where` is the line that it was at, empty if it waited for other ranks there."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number
        self.where = where


class Stuck(BaseException):
    """This rank got nothing done for longer than the time-out; `where` is the line that it was at."""

    def __init__(self, where: str) -> None:
        super().__init__(f"got nothing done for longer than --timeout, at {where}")
        self.where = where


@dataclass(frozen=True)
class Word:
    """What a rank has to say about its end.

    code: its exit code. notes: what became of its work. progress: how far it had come, compared with other ranks.
    """

    rank: int
    code: int
    message: str
    notes: tuple[str, ...] = ()
    where: str = ""
    progress: int = 0
    time: float = 0.0

    def leave(self, file: Path) -> None:
        """Write it down for the launcher."""
        partial = file.with_name(f"{file.name}.partial")
        partial.write_text(json.dumps({**asdict(self), "time": time.time()}))
        os.replace(partial, file)

    @classmethod
    def read_all(cls, folder: Path, name: str) -> list[Word]:
        """The words in all files of this name, earliest first."""
        found = [json.loads(file.read_text()) for file in folder.rglob(name)]
        return sorted((cls(**{**word, "notes": tuple(word["notes"])}) for word in found), key=lambda word: word.time)


def is_ignored(number: int) -> bool:
    """Whether whoever started this process, or somebody in it, ignores a signal."""
    return signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def stoppable(rescue: Callable[[Stopped], object]) -> Iterator[None]:
    """Let the first signal that asks to end raise `Stopped` in the main thread, and none disturb it afterwards.

    A signal that is ignored, as nohup wants it for SIGHUP, stays ignored.
    rescue: called from another thread if the main thread does not hear the signal; the process ends after it. Where
    something in the with-block has taken over a signal, what comes of it is left to that.
    """
    heard = threading.Event()
    main = threading.main_thread().ident

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        heard.set()
        if sys.exception() is None:  # else this rank is ending already, and what it keeps is not to be cut short
            raise Stopped(number, place_of(frame))

    def watch() -> None:
        while number := inlet.recv(1):  # nothing once the other end is closed
            is_ours = number[0] in SIGNALS and signal.getsignal(number[0]) is stop
            if is_ours and not heard.wait(GRACE_SECONDS):
                rescue(Stopped(number[0], place_of(sys._current_frames().get(main or 0))))
                leave(LOST)

    inlet, outlet = socket.socketpair()
    outlet.setblocking(False)
    before = {each: signal.signal(each, stop) for each in SIGNALS if not is_ignored(each)}
    descriptor = signal.set_wakeup_fd(outlet.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for each, handler in before.items():
            signal.signal(each, handler)
        outlet.close()
        watcher.join()
        inlet.close()


@contextmanager
def idle_limit(idle: Callable[[], float], limit: float, give_up: Callable[[Stuck], object]) -> Iterator[None]:
    """Call `give_up` from another thread once the main thread has been idle for longer than `limit` seconds.

    On CUDA that is how a rank that waits for others is noticed: the wait is inside the driver, without an error.
    """

    def watch() -> None:
        while not over.wait(min(1.0, limit / 10)):
            if idle() > limit:
                give_up(Stuck(place_of(sys._current_frames().get(main or 0))))

    over, main = threading.Event(), threading.main_thread().ident
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def place_of(frame: FrameType | None) -> str:
    """File, line and function of a frame; empty if it is a call of torch.distributed that waits for other ranks."""
    outer = frame
    while outer is not None:
        if os.path.join("torch", "distributed") in outer.f_code.co_filename:
            return ""
        outer = outer.f_back
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}, in {frame.f_code.co_name}" if frame else ""


def leave(code: int) -> NoReturn:
    """End this process now: what libraries do at exit may wait for ranks that are gone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # full, closed, or not there: no reason to stay
            stream.flush()
    os._exit(code)
