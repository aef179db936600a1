"""Making the videos of one call of `omni run`: models are loaded once, bad inputs are found before that."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from omniavatar.cli import diagnosis
from omniavatar.cli.console import say, saying_faults, tell
from omniavatar.cli.progress import Progressing, Watcher, display_for
from omniavatar.cli.ranks import Rescue
from omniavatar.distributed.world import World, common, tells_for_all
from omniavatar.errors import InputError, in_one_line, is_failure
from omniavatar.opening import FinalConfig, engine_of, torch_device
from omniavatar.threads import suit_threads

if TYPE_CHECKING:
    import torch

    from omniavatar.cli.start import Start
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.run import Result
    from omniavatar.engine.scopes import Request

log = logging.getLogger(__name__)
Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Video:
    """One video that was asked for: its inputs by name, and in a list the place of its line."""

    inputs: dict[str, Any]
    place: str = ""


@dataclass
class VideoMaker:
    """Makes videos with one configuration and says on stdout where they are, or with `as_json` what they took.

    observers: further ones of the engine. remarks: what to say before the work begins. command: the words that were
    given, to be recorded in the videos.
    """

    begin: Start
    config: FinalConfig
    size: tuple[int, int] | None
    seconds: float | None
    quiet: bool
    as_json: bool
    observers: Sequence[Any] = ()
    remarks: Sequence[str] = ()
    command: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.world = self.begin.world
        self.quiet = self.quiet or not self.world.is_main
        self.watcher = Watcher(display_for(Progressing(), quiet=self.quiet))
        self.rescue = Rescue()

    @property
    def device(self) -> torch.device:
        """What the networks run on."""
        return torch_device(self.config.device, self.world.local_rank)

    def check(self, videos: Sequence[Video]) -> None:
        """Find bad inputs and a split that is impossible, without making anything or touching a device.

        Only a whole list of bad lines is an error.
        """
        import torch

        engine = self.engine(World(size=self.config.gpus, local_size=self.config.gpus), torch.device("cpu"))
        engine.check_split()
        if not [video for video in videos if self.tried(video, self.request, engine, video) is not None]:
            raise InputError("none of the lines can be made")

    def make(self, videos: Sequence[Video]) -> int:
        """Make them all; returns the exit code. A bad line of a list is reported and does not stop the others."""
        engine = self.engine(self.world, self.device)
        engine.check_split()
        suit_threads(engine)
        good = self.agreed([(video, self.tried(video, self.request, engine, video)) for video in videos])
        if good:
            for remark in () if self.quiet else self.remarks:
                say(remark)
            with self.watcher:
                self.watcher.load(engine, self.rescue.note)
        made = 0
        for number, (video, request) in enumerate(good, start=1):
            self.watcher.title = f"video {number}/{len(good)}, " if len(good) > 1 else ""
            result = self.made(video, engine, request)
            if result is not None:
                self.report(engine, result)
                made += 1
        if 0 < made < len(videos) and not self.quiet:
            say(f"{made} of {len(videos)} videos are made")
        return 0 if made == len(videos) else InputError.exit_code

    def agreed(self, asked: Sequence[tuple[Video, Request | None]]) -> list[tuple[Video, Request]]:
        """The videos that every rank can make, since all make each of them together."""
        mine = [index for index, (_, request) in enumerate(asked) if request is not None]
        of_all = common(mine, self.world)
        for index in mine:
            if index not in of_all and self.world.is_main:
                say(f"{asked[index][0].place or 'the video'}: left out, since another rank cannot read its inputs")
        return [(video, request) for index, (video, request) in enumerate(asked) if request and index in of_all]

    def engine(self, world: World, device: torch.device) -> Engine:
        """The engine for this configuration; headers are read, weights are not."""
        with saying_faults(self.begin.plugins):
            registry = self.begin.plugins.registry(map(Path, self.config.tables))
        observers = [*self.observers, self.watcher, self.rescue]
        engine = engine_of(self.config, self.begin.catalog, registry, device=device, world=world, observers=observers)
        if self.command:
            engine.values["command"] = list(self.command)
        return engine

    def request(self, engine: Engine, video: Video) -> Request:
        """The request for a video, checked as far as that is possible before anything is loaded."""
        from omniavatar.engine.scopes import Request

        inputs = dict(video.inputs)
        if "output" not in engine.plan.input_fields:
            inputs.pop("output", None)
        height, width = self.size or (None, None)
        request = Request(inputs, self.config.seed, height, width, self.seconds, self.config.fps)
        engine.check_request(request)
        return request

    def made(self, video: Video, engine: Engine, request: Request) -> Result | None:
        """Make one video. When one of several ranks fails the others cannot go on, so that ends them all."""
        if self.world.size > 1:
            return self.watched(engine, request)
        return self.tried(video, self.watched, engine, request)

    def watched(self, engine: Engine, request: Request) -> Result:
        """Make one video, with its progress on show."""
        with self.watcher:
            return engine.generate(request)

    def tried(
        self, video: Video, work: Callable[Arguments, Found], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Found | None:
        """The result of some work on a video; what is wrong with a line of a list is reported, and None returned.

        So is a fault of the program, or memory that is short, since other lines may do.
        """
        try:
            return work(*args, **kwargs)
        except BaseException as error:
            if not video.place or not is_failure(error):
                raise
            message, _ = diagnosis(error)
            if not message:
                message = in_one_line(error)
                log.info("%s", "".join(traceback.format_exception(error)).rstrip())
            if tells_for_all():  # ranks that this program has started find what it has found before
                say(f"{video.place}: {message}", error)
            return None

    def report(self, engine: Engine, result: Result) -> None:
        """Where the video is, or the figures as one line of JSON."""
        if not self.world.is_main:
            return
        if self.as_json:
            tell(json.dumps(figures(engine, self.watcher.load_seconds, result)))
        elif not self.quiet:
            place = result.video or "no file, since no unit writes one"
            took = result.timings.generate_seconds
            tell(f"{place}  ({result.seconds:.2f} s of video in {took:.1f} s)")


def figures(engine: Engine, load_seconds: float, result: Result) -> dict[str, Any]:
    """What a video took, as JSON values."""
    height, width = result.size
    return {
        "video": None if result.video is None else str(result.video),
        "frames": result.frames,
        "fps": result.fps,
        "height": height,
        "width": width,
        "units": [repr(unit) for unit in result.plan.units],
        "seed": result.seed,
        "device": str(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        **{name: value and round(value, 3) for name, value in asdict(result.timings).items()},
        "load_seconds": round(load_seconds, 3),
        **peak_memory(engine.device),
    }


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held, in MiB: of the machine, where it can be asked, and of its GPU."""
    from omniavatar.engine.out_of_memory import host_peak

    peaks = {}
    if (rss := host_peak()) is not None:
        peaks["peak_rss_mib"] = round(rss / 2**20, 1)
    if device.type == "cuda":
        import torch

        peaks["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return peaks
