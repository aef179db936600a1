"""A run: one video, made as its chunks are asked for.

    with engine.start(Request({"image": "me.png", "audio": "me.wav"}), settings={"schedule": {"steps": 8}}) as run:
        for chunk in run:
            send(chunk.frames)              # (t h w 3) uint8
        print(run.result().seconds)

`run.cancel()` ends it from any thread, `run.state()` between chunks is what another process needs to go on.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from omniavatar.engine.loop import Group, Loop, announce, restore, state_of
from omniavatar.engine.manifest import manifest
from omniavatar.engine.plan import Plan
from omniavatar.engine.progress import Progress, Timings
from omniavatar.engine.scopes import Job, Request, Step, Window
from omniavatar.engine.windows import Span
from omniavatar.errors import Cancelled, InputError

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine

State = Mapping[str, Tensor]
"""What the next chunk needs of those before: tensors by name, in host memory."""
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Chunk:
    """A piece of the video that was made at once: `index` of `count`, its frames (t h w 3) uint8 on the host.

    start: the number of its first frame, counted in the video.
    """

    index: int
    count: int
    start: int
    frames: np.ndarray


@dataclass(frozen=True)
class Result:
    """What became of a run.

    video: the file, None if the plan writes none. frames: how many the video has. size: height and width in pixels.
    seconds: length of the video. plan: the units with their settings. timings: what took how long.
    manifest: all of it, and the inputs, as JSON values.
    """

    video: Path | None
    frames: int
    fps: int
    size: tuple[int, int]
    seed: int
    seconds: float
    plan: Plan
    timings: Timings
    manifest: Mapping[str, Any] = field(repr=False)


class Run:
    """One video in work; `Engine.start` makes it. Iterate over it for chunks, or over `groups` for frames as decoded.

    What it holds is let go when it is over: after the last chunk, an error, `cancel`, or the end of its with-block.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        request: Request,
        observers: Iterable[Any] = (),
        resume: State | str | Path | None = None,
    ) -> None:
        self.engine = engine
        self.plan = plan
        self.request = request
        self.progress = Progress()
        self._observers = [self.progress, *observers]
        self._resume = state_from(resume)
        self._is_cancelled = threading.Event()
        check = partial(refuse, self._is_cancelled)
        loop = Loop(engine, plan, request, self._observers, check)
        self._loop: Loop | None = loop
        self._forgotten = weakref.finalize(self, loop.close, Cancelled("nobody takes the frames of the run any more"))
        self._at_work = threading.Lock()
        self._worker: int | None = None
        self._is_piecewise = False
        self._work: Generator[Any, None, None] | None = None
        self._items: Iterator[Any] | None = None
        self._maker: Callable[[Loop], Any] | None = None
        self._done: int | None = None
        self._result: Result | None = None

    # The whole video --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Chunk]:
        """The chunks, each when it is made. A second iteration goes on where the first has stopped."""
        return self._iterate(self._make_chunks)

    def groups(self) -> Iterator[Group]:
        """The frames of the video in groups as they are decoded: the first long before the last of its chunk is.

        Instead of iterating over chunks, not beside it.
        """
        return self._iterate(self._make_groups)

    def result(self) -> Result:
        """What became of the video; what is not made yet is made first.

        Raises Cancelled after `cancel`, and InputError if the run has failed before.
        """
        exhaust(self._iterate(self._make_groups) if self._items is None else self._items)
        self._refuse_if_cancelled()
        if self._result is None:
            raise InputError("the run ended before its video was finished, so there is no result")
        return self._result

    def cancel(self) -> None:
        """End the run, from any thread: before its next step, or at once if nobody waits for a chunk.

        Whoever iterates gets Cancelled. No file is left, and what the run held is let go. A run that is over stays as
        it is.
        """
        if self.is_over:
            return
        self._is_cancelled.set()
        if not self._is_piecewise:
            self._end_if_cancelled()

    def close(self) -> None:
        """End the run if it is not over, as `cancel` does, and wait until it has ended."""
        if not self.is_over:
            self._leave(Cancelled("the run was closed"))

    @property
    def is_over(self) -> bool:
        """Whether the run holds nothing any more, so that its engine is free."""
        return self._loop is None

    def state(self) -> State:
        """What `Engine.start(request, resume=...)` needs to go on behind this chunk: tensors by name, on the host.

        To be asked while a chunk has been taken and the next one has not; `safetensors.torch.save_file` writes it.
        Raises InputError at other times.
        """
        if self._loop is None or self._done is None:
            raise InputError("a run has a state behind a chunk, until the next one is asked for")
        return state_of(self._loop, self._done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error or Cancelled("the run was left before its end"))

    # Piece by piece ---------------------------------------------------------------------------------------------------

    @property
    def job(self) -> Job:
        """The outermost scope of this video. Raises InputError when the run is over."""
        return self.loop.job

    @property
    def loop(self) -> Loop:
        """The algorithm's own steps, for those who do not want all of it. Raises InputError when the run is over."""
        if self._loop is None:
            self._refuse_if_cancelled()
            raise InputError("the run is over; start another one")
        return self._loop

    def _loading(self, doing: str, done: int, total: int) -> None:
        """Tell all observers that want to know how far loading is; a run that is cancelled loads no further."""
        self._refuse_if_cancelled()
        for observer in (*self.engine.observers, *self._observers):
            if isinstance(observer, Progress):
                observer.loading(doing, done, total)

    def begin(self) -> None:
        """Load what is not loaded, and begin the job; `windows` does it when it has not been done."""
        loop = self.loop
        if not loop.job.spans:
            self.plan.check_complete()
            if self._resume is not None:
                announce(loop.job, self._resume)
            self.engine.load(self._loading)
            loop.begin()
            if self._resume is not None:
                restore(loop, self._resume)

    def windows(self, indices: Iterable[int] | None = None) -> Iterator[Window]:
        """The windows in turn, each ready to be denoised; see `Loop.windows`. For a part of the algorithm only: whoever
        wants a video iterates over the run itself. The caller chooses the grad mode, and ends the run.
        """
        self._is_piecewise = True
        self.begin()
        return self.loop.windows(indices)

    def open_window(self, index: int, span: Span, **options: Any) -> Window:
        """A window of the caller's own choice; see `Loop.open_window`."""
        return self.loop.open_window(index, span, **options)

    def denoise(self, window: Window) -> Iterator[Step]:
        """The steps of a window, each when it is done."""
        return self.loop.denoise(window)

    def decode(self, window: Window) -> Iterator[Group]:
        """The frames of a denoised window that enter the video, group by group."""
        return self.loop.decode(window)

    def finish(self) -> None:
        """Finish the file and what else belongs to the whole video."""
        self.loop.finish()

    # Inside -----------------------------------------------------------------------------------------------------------

    def _make_groups(self, loop: Loop) -> Generator[Group, None, None]:
        self.begin()
        for window in loop.windows():
            exhaust(loop.denoise(window))
            yield from loop.decode(window)
        self._finish(loop)

    def _make_chunks(self, loop: Loop) -> Generator[Chunk, None, None]:
        self.begin()
        for window in loop.windows():
            exhaust(loop.denoise(window))
            frames = [group.frames for group in loop.decode(window)]
            index, count = window.index, len(loop.job.spans)
            start = window.span.keep_start
            loop.close_window(window)
            del window
            self._done = index + 1
            yield Chunk(index, count, start, np.concatenate(frames) if frames else empty(loop.job))
            del frames
            self._done = None
        self._finish(loop)

    def _finish(self, loop: Loop) -> None:
        """The end of the video, and what is to be told of it."""
        self.finish()
        job = loop.job
        self._result = Result(
            video=job.results.get("video"),
            frames=job.length,
            fps=job.fps,
            size=job.size,
            seed=job.seed,
            seconds=job.length / job.fps,
            plan=self.plan,
            timings=self.progress.timings,
            manifest=manifest(self.engine, self.plan, job, self.progress.timings),
        )

    def _iterate(self, make: Callable[[Loop], Generator[Item, None, None]]) -> Iterator[Item]:
        """The items that `make` gives, from where an iteration over them has stopped.

        Raises Cancelled, or InputError if the run is iterated over in another way already.
        """
        self._refuse_if_cancelled()
        if self._loop is not None and self._items is None:
            self._maker, self._work = make, make(self._loop)
            self._items = Items(self._next)
        if self._maker not in (None, make):
            raise InputError("the run is iterated over in another way already: by chunks or by groups of frames")
        return iter(()) if self._items is None else self._items

    def _next(self) -> Any:
        """The next item of the work, made in the engine's surroundings. The last one, or an error, ends the run.

        Raises StopIteration at the end, and InputError if a hook of the run asks for it.
        """
        if self._worker == threading.get_ident():
            raise InputError("a hook of the run cannot ask for the run's own frames")
        with self._working():
            try:
                self._refuse_if_cancelled()
                if self._work is None:
                    raise StopIteration
                with self._surroundings():
                    item = next(self._work)
                self._refuse_if_cancelled()
            except BaseException as error:
                forget_circles(error)
                self._end(None if isinstance(error, StopIteration) else error)
                raise
        self._end_if_cancelled()
        return item

    @contextmanager
    def _working(self) -> Iterator[None]:
        """One thread at a time works on the video."""
        with self._at_work:
            self._worker = threading.get_ident()
            try:
                yield
            finally:
                self._worker = None

    def _end_if_cancelled(self) -> None:
        """End the run if that is wanted and nobody is at work; whoever is at work does it next."""
        if self._is_cancelled.is_set() and self._at_work.acquire(blocking=False):
            try:
                self._end(Cancelled("the run was cancelled"))
            finally:
                self._at_work.release()

    def _leave(self, error: BaseException) -> None:
        """End the run for this reason, as soon as whoever is at work has noticed; within a hook of the run, later."""
        if self.is_over:
            return
        self._is_cancelled.set()
        if self._worker != threading.get_ident():
            with self._working():
                self._end(error)

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """What the networks work in; the caller's own code between two chunks does not."""
        with torch.inference_mode(), self.engine.current():
            yield

    def _end(self, error: BaseException | None) -> None:
        """Let everything go; `error` is what ended the run early, if anything."""
        loop, work = self._loop, self._work
        if loop is None:
            return
        self._loop = self._work = self._items = self._maker = self._done = self._resume = None
        self._forgotten.detach()
        try:
            if work is not None and error is not None:
                with self._surroundings():
                    work.close()
        finally:
            loop.close(error)

    def _refuse_if_cancelled(self) -> None:
        if self._result is None:
            refuse(self._is_cancelled)


class Items(Iterator[Any]):
    """What a run gives, one by one, to whichever thread asks."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __next__(self) -> Any:
        return self._make()


def exhaust(items: Iterable[Any]) -> None:
    """Take all items and keep none, not even the last."""
    deque(items, maxlen=0)


def refuse(is_cancelled: threading.Event) -> None:
    """Raise Cancelled if that is so."""
    if is_cancelled.is_set():
        raise Cancelled("the run was cancelled")


def forget_circles(error: BaseException) -> None:
    """Let the frames of pluggy that an error came through forget it, since they keep it, and with it all that the
    frames below hold, until the cycle collector comes."""
    for frame, _ in walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).startswith("pluggy."):
            frame.clear()


def empty(job: Job) -> np.ndarray:
    """No frames (0 h w 3) uint8."""
    return np.empty((0, *job.size, 3), np.uint8)


def state_from(given: State | str | Path | None) -> State | None:
    """A state, read if it is a file's. Raises InputError."""
    if given is None or isinstance(given, Mapping):
        return given
    if not isinstance(given, str | Path):
        raise InputError(f"a state is a mapping of tensors or a file of them, not {type(given).__name__}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(given)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read the state {given}: {error}") from None
