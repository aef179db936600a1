"""`omni train prepare`: run the networks that stay as they are over all clips, once, in one process or several."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from omniavatar.cli.console import logging_to_stderr, say, tell
from omniavatar.cli.progress import Display, Progressing, display_for
from omniavatar.cli.trainings import opened
from omniavatar.distributed.world import ALONE, World
from omniavatar.engine.progress import Status
from omniavatar.errors import Ended, InputError, OmniError, OutputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omniavatar.training.data.faults import Faults
    from omniavatar.training.diffusion import Diffusion, DiffusionConfig
    from omniavatar.training.samples import Origin
    from omniavatar.training.takes import Source

MADE = "made"
"""What a process reports when it has made a sample."""


def check_alone(options: Mapping[str, Any], world: World) -> None:
    """Refuse what is for training alone."""
    if world.size > 1:
        raise InputError("omni train prepare runs without torchrun; --workers NUMBER shares the clips out")
    if options["gpus"] is not None:
        raise InputError("omni train prepare takes no --gpus; --workers NUMBER shares the clips out over processes")
    if options["max_minutes"] is not None:
        raise InputError("omni train prepare takes no --max-minutes; stop it with Ctrl-C, the same command goes on")


def prepare(config: DiffusionConfig, workers: int, *, quiet: bool) -> int:
    """Keep what the networks make of all clips in the configuration's cache."""
    from omniavatar.opening import tell_of_slow
    from omniavatar.training.data.faults import SKIPPED
    from omniavatar.training.folder import claimed
    from omniavatar.training.samples import ORIGIN, UNFINISHED, check_origin, keys_in, write_origin

    folder = config.cache
    if folder is None:
        raise InputError("the configuration names no cache; add: cache: FOLDER")
    diffusion = opened(config, ALONE)
    origin = diffusion.origin()
    if (folder / ORIGIN).exists():
        check_origin(folder, origin)
        if not quiet:
            tell(f"{folder}  (made before; remove it to make it anew)")
        return 0
    diffusion.check_clips()
    tell_of_slow(diffusion.dtype, diffusion.device, config.device)
    with claimed(folder, "cache"):
        begin(folder, origin)
        source = diffusion.source(folder)
        faults: Faults | None = getattr(getattr(source, "clips", None), "faults", None)

        def kept() -> int:
            return len({key for path in folder.glob("*.safetensors") for key in keys_in(path)})

        try:
            with display_for(Progressing(), quiet=quiet) as display:
                display.show(Status("loading the networks"))
                progress = Progress(display, len(source) * config.variants, kept())
                if workers == 1:
                    make(diffusion, source, 0, 1, progress)
                else:
                    share_out(config, workers, faults, progress)
        except (KeyboardInterrupt, Ended) as error:
            error.add_note(f"{kept()} samples are kept in {folder}; the same command goes on")
            raise
        count = kept()
        if not count:
            raise InputError("no clip could be used, so the cache is empty")
        write_origin(folder, origin)
        (folder / UNFINISHED).unlink()
    if not quiet:
        bad = [f"bad clips: {len(faults.found)}, see {SKIPPED}"] if faults is not None and faults.found else []
        tell(f"{folder}  ({', '.join([f'{count} samples', *bad])})")
    return 0


def begin(folder: Path, origin: Origin) -> None:
    """Begin a cache, or go on with one of the same origin that was not finished."""
    from omniavatar.training.data.faults import SKIPPED
    from omniavatar.training.samples import UNFINISHED, check_origin, write_origin

    if any(folder.glob("*.safetensors")):
        if not (folder / UNFINISHED).exists():
            raise InputError(f"{folder} holds files that are no cache; name another folder")
        check_origin(folder, origin, UNFINISHED)
        return
    write_origin(folder, origin, UNFINISHED)
    (folder / SKIPPED).unlink(missing_ok=True)  # what was bad may pass with these settings


class Progress:
    """Shows how many samples there are, after each that is made."""

    def __init__(self, display: Display, total: int, before: int) -> None:
        self.display, self.total, self.before, self.done = display, total, before, before
        self.began = time.monotonic()

    def __call__(self) -> None:
        self.done += 1
        left = (time.monotonic() - self.began) / (self.done - self.before) * max(0, self.total - self.done)
        self.display.show(Status(f"sample {self.done} of about {self.total}", self.done, self.total, left))


def make(diffusion: Diffusion, source: Source, part: int, parts: int, made: Callable[[], None]) -> None:
    """Prepare every `parts`-th clip, but for the samples that are there; `made` is told of each."""
    from omniavatar.training.samples import CacheWriter
    from omniavatar.training.takes import Share

    config = diffusion.config
    assert config.cache is not None
    with CacheWriter(config.cache, part) as cache:
        share = Share(config.variants, frozenset(cache.keys), part, parts)
        preparation = diffusion.preparation()
        settings = config.samples.fitted(preparation.engine.geometry)
        for key, sample in source.each(settings, share, preparation.sample):
            cache.add(sample, key)
            made()


def share_out(config: DiffusionConfig, workers: int, faults: Faults | None, made: Callable[[], None]) -> None:
    """Prepare in several processes, each with its part of the clips; whether too many are bad is decided here.

    However it ends, the processes write what they have made; a second Ctrl-C does not wait for that.
    """
    from omniavatar.training.data.faults import Fault

    context = multiprocessing.get_context("spawn")
    reports, stop = context.Queue(), context.Event()
    processes = [
        context.Process(target=work, args=(config, part, workers, reports, stop), daemon=True)
        for part in range(workers)
    ]
    with ExitStack() as stack:
        stack.enter_context(without_interrupts())
        for process in processes:
            process.start()
        stack.close()
        try:
            for report in received(reports, processes):
                if isinstance(report, Fault):
                    assert faults is not None
                    faults.record(report)
                elif isinstance(report, Exception):
                    raise report
                else:
                    made()
        except (KeyboardInterrupt, Ended):
            say("stopping after the samples in work; once more stops at once")
            raise
        finally:
            stop.set()
            for process in processes:
                process.join()


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C; processes that are started meanwhile go on to ignore it."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # only the main thread has signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def received(reports: Any, processes: Sequence[BaseProcess]) -> Iterator[Any]:
    """What processes report, until all have ended. Raises OutputError if one ended without a word."""
    while True:
        is_over = not any(process.is_alive() for process in processes)
        try:
            yield reports.get(timeout=0.2)
        except Empty:
            codes = [process.exitcode for process in processes if process.exitcode]
            if codes:
                raise OutputError(
                    f"one of {len(processes)} processes ended with code {codes[0]}; fewer --workers need less memory"
                ) from None
            if is_over:
                return


def work(config: DiffusionConfig, part: int, parts: int, reports: Any, stop: Any) -> None:
    """Prepare a part in a process of its own."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def report(what: Any = MADE) -> None:
        reports.put(what)
        if stop.is_set() or (parent is not None and not parent.is_alive()):
            raise KeyboardInterrupt

    try:
        with logging_to_stderr(-1):  # the process that has started this one says the rest
            diffusion = opened(config, ALONE)
            assert config.cache is not None
            make(diffusion, diffusion.source(config.cache, report), part, parts, report)
    except KeyboardInterrupt:
        reports.cancel_join_thread()
    except (OmniError, torch.OutOfMemoryError) as error:
        reports.put(error)
