"""`omni calibrate`: measure what a cache must know about a checkpoint, and write it as a table."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omniavatar.cli.bench import check_writable
from omniavatar.cli.console import tell
from omniavatar.cli.demo import DEMO, asks_for_the_demo
from omniavatar.cli.estimates import count
from omniavatar.cli.fields import UserPath
from omniavatar.cli.options import DEVICE, FPS, split_values
from omniavatar.cli.run import (
    FLAGS,
    RunCommand,
    asked_size,
    planned_videos,
    seconds_of,
    size_options,
    with_hyphens,
)
from omniavatar.cli.start import EARLY, Start, start
from omniavatar.cli.videos import VideoMaker
from omniavatar.engine.plan import answers
from omniavatar.engine.ranks import MainRankOnly
from omniavatar.errors import InputError, OutputError, PlanError
from omniavatar.threads import suit_threads

if TYPE_CHECKING:
    from omniavatar.calibration import Recorder
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Request

CALIBRATED = ("teacache", "magcache")
MOST_RUNS = 100


class CalibrateCommand(RunCommand):
    """Takes the options of the plan's units, less those that write files."""

    note = "Models, units and inputs are those of omni run."

    def begin(self, early: Mapping[str, Any]) -> Start:
        begin = start(early)
        for name in begin.chosen:
            if answers(begin.units[name], "run_blocks"):
                raise PlanError(f"unit '{name}' skips blocks, which are to be measured; leave it out with -{name}")
        chosen = {
            name: values for name, values in begin.chosen.items() if not issubclass(begin.units[name], MainRankOnly)
        }
        return replace(begin, chosen=chosen)


def cache_of(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """The name of a unit that can be calibrated."""
    if value not in CALIBRATED:
        raise InputError(f"'{value}' cannot be calibrated; choices: {', '.join(CALIBRATED)}")
    return value


@click.command(
    cls=CalibrateCommand,
    params=list(EARLY),
    context_settings={"max_content_width": 120, "token_normalize_func": with_hyphens},
)
@click.argument("cache", metavar="teacache|magcache", callback=cache_of)
@click.option(
    "--write", "file", type=UserPath(dir_okay=False), metavar="FILE",
    help="the table  [default: CHECKPOINT-CACHE.toml]",
)  # fmt: skip
@click.option("--force", is_flag=True, help="replace a table that exists")
@click.option(
    "--runs", type=click.IntRange(1, MOST_RUNS), default=2, metavar="INTEGER", help="seeds for each input  [default: 2]"
)
@click.option("--input-file", metavar="FILE", help="several inputs: a line each, prompt@@image@@audio")
@size_options
@click.option("--seconds", type=float, callback=seconds_of, metavar="NUMBER", help="length of a video")
@FPS
@click.option("--seed", type=int, metavar="INTEGER", help="seed of the first run  [default: 42]")
@DEVICE
@click.option("--dtype", metavar="auto|bf16|fp16|fp32", help="precision of the networks")
@click.option("--quiet", is_flag=True, help="print errors only")
@click.option("-v", "--verbose", count=True, help="print what is going on; -vv for more")
@click.pass_context
def calibrate(ctx: click.Context, cache: str, file: Path | None, force: bool, runs: int, **options: Any) -> None:
    """Measure what a cache must know about a checkpoint while it makes some videos, and write it as a table.

    omni run --table FILE then uses it. Calibrate with the schedule and the solver that you make videos with.
    Without inputs the demo's are taken.
    """
    begin: Start = ctx.obj
    inputs, settings = split_values(options, begin.units, begin.catalog.units)
    flags = {key: options[key] for key in FLAGS if options.get(key) is not None}
    config = begin.final(flags, settings)
    if max(config.gpus, begin.world.size) > 1:
        raise InputError("omni calibrate works on one rank; leave --gpus out")
    given = {**config.inputs, **inputs}
    if options["input_file"] is None and asks_for_the_demo(given, begin.units):
        given = {**DEMO, **given}
    from omniavatar.calibration import FITS, Recorder, calibrated, table

    recorder = Recorder()
    shape = {name: options[name] for name in ("seconds", "quiet")}
    maker = VideoMaker(begin, config, asked_size(options), **shape, as_json=False, observers=[recorder])
    engine = maker.engine(maker.world, maker.device)
    suit_threads(engine)
    checkpoint = calibrated(engine.models)  # type: ignore[arg-type]
    file = file or Path(f"{checkpoint.row.name}-{cache}.toml")
    if file.exists() and not force:
        raise InputError(f"{file} exists; name another file with --write, or replace it with --force")
    check_writable(file.parent)
    requests = [maker.request(engine, video) for video in planned_videos(given, options["input_file"])]
    measure(
        maker,
        engine,
        [replace(one, seed=int(one.seed or 0) + run) for one in requests for run in range(runs)],
        recorder,
    )
    fit = FITS[cache](recorder.changes)
    videos = count(len(requests) * runs, "video")
    remarks = [f"{videos} by {'+'.join(map(repr, engine.plan.units))}"]
    try:
        file.write_text(table(fit, checkpoint, cache, remarks), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}; choose another place") from None
    if not options["quiet"]:
        tell(f"{file}  ({fit.error})\nuse it: omni run --table {shlex.quote(str(file))} --units +{cache}")


def measure(maker: VideoMaker, engine: Engine, requests: list[Request], recorder: Recorder) -> None:
    """Make the videos."""
    with maker.watcher:
        maker.watcher.load(engine, maker.rescue.note)
    for number, request in enumerate(requests, start=1):
        maker.watcher.title = f"video {number}/{len(requests)}, " if len(requests) > 1 else ""
        maker.watched(engine, request)
