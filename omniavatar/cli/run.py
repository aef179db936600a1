"""`omni run`: make videos. Options beyond the core ones come from the units of the plan (see `options.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omniavatar.cli.console import logging_to_stderr
from omniavatar.cli.options import DEVICE, FPS, UnitOption, split_values, unit_options
from omniavatar.cli.ranks import as_rank, check_ranks, start_ranks
from omniavatar.cli.start import EARLY, Start, early_options, start
from omniavatar.cli.videos import Video, VideoMaker
from omniavatar.distributed.world import place
from omniavatar.errors import InputError, OmniError, PlanError, nearest
from omniavatar.resources import asset

if TYPE_CHECKING:
    from omniavatar.engine.unit import PipelineUnit

ARGUMENTS = "omniavatar.arguments"
LONGEST = 24 * 60 * 60
DEMO = {
    "image": asset("demo", "portrait.png"),
    "audio": asset("demo", "speech.flac"),
    "output": Path("out", "demo.mp4"),
}
FLAGS = ("seed", "fps", "device", "dtype", "gpus")
"""Options that stand for the field of this name in the configuration."""


def with_hyphens(name: str) -> str:
    """Options may also be written with underscores."""
    return name.replace("_", "-")


class RunCommand(click.Command):
    """A command whose options depend on `--units` and `--config`."""

    note = (
        "Defaults are those of the units; a configuration and the tables of known checkpoints may set others. "
        "Other units bring other options: omni run --units default+teacache --help"
    )
    early: Sequence[click.Option] = EARLY

    def begin(self, early: Mapping[str, Any]) -> Start:
        """What must be known before all options can be."""
        return start(early)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        early = early_options(args, with_hyphens, self.early)
        # The root context: one whose parsing fails is not closed.
        is_quiet = early["quiet"] or not place().is_main
        ctx.find_root().with_resource(logging_to_stderr(-1 if is_quiet else early["verbose"]))
        ctx.obj = self.begin(early)
        ctx.meta[ARGUMENTS] = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise explained(error, ctx.obj) from None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        if not isinstance(ctx.obj, Start):
            return own
        return [*own, *unit_options(ctx.obj.units.values(), {str(param.name) for param in own})]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options under headings: the command's own, the inputs, then one for each unit with settings."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                title = param.section if isinstance(param, UnitOption) else "Options"
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                if title in ctx.obj.units:
                    formatter.write_text(ctx.obj.units[title].summary())
                formatter.write_dl(records, col_max=36)
        formatter.write_paragraph()
        formatter.write_text(self.note)


def explained(error: click.NoSuchOption, begin: Start) -> OmniError:
    """What is wrong with an option: misspelt, or of a unit that is not in the plan or has no such setting."""
    option = error.option_name
    unit, dot, setting = option.lstrip("-").partition(".")
    if not dot or unit not in begin.catalog.units:
        command = "omni run" if error.ctx is None else error.ctx.command_path
        near = f"did you mean '{error.possibilities[0]}'?" if error.possibilities else f"{command} --help lists all"
        return InputError(f"unknown option '{option}'; {near}")
    if unit not in begin.chosen:
        from omniavatar.engine.plan import in_place_of

        taker = in_place_of(unit, begin.chosen, begin.catalog)
        if taker is not None:
            hint = f"'{taker}' is in its place: --{taker}.{setting}"
            return PlanError(f"{option}: unit '{unit}' is not in the plan; {hint}")
        return PlanError(
            f"{option}: unit '{unit}' is not in the plan; add it with --units '{begin.config.units}+{unit}'"
        )
    known = [with_hyphens(name) for name in begin.units[unit].Settings.model_fields]
    return PlanError(f"{option}: unit '{unit}' has no setting '{setting}'{nearest(setting, known)}")


def size_of(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`--size`."""
    return None if value is None else parse_size(value)


def parse_size(value: str) -> tuple[int, int]:
    """`HEIGHTxWIDTH`, multiples of 16."""
    sides = [int(side) if side.isascii() and side.isdigit() else 0 for side in value.lower().split("x")]
    if len(sides) != 2 or any(side < 16 or side % 16 for side in sides):
        raise InputError(f"--size is '{value}'; give HEIGHTxWIDTH in positive multiples of 16, such as 400x720")
    return sides[0], sides[1]


def seconds_of(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """A positive number, up to a day."""
    if value is not None and not 0 < value <= LONGEST:
        raise InputError(f"--seconds is {value:g}; give a length above 0 and up to {LONGEST}")
    return value


@click.command(
    cls=RunCommand,
    params=list(EARLY),
    context_settings={"max_content_width": 120, "token_normalize_func": with_hyphens},
)
@click.option(
    "--input-file", metavar="FILE", help="many videos: a line each, prompt@@image@@audio; --output is a folder"
)
@click.option(
    "--size", callback=size_of, metavar="HxW", help="height and width in pixels  [default: nearest of a table]"
)
@click.option(
    "--seconds", type=float, callback=seconds_of, metavar="NUMBER", help="longest length  [default: the sound's]"
)
@FPS
@click.option("--seed", metavar="INTEGER|random", help="seed of the noise; random or -1 draws one  [default: 42]")
@DEVICE
@click.option(
    "--dtype", metavar="auto|bf16|fp16|fp32", help="precision of the networks  [default: bf16 on a GPU, or fp32]"
)
@click.option("--gpus", type=click.IntRange(1), metavar="INTEGER", help="ranks to start on this machine  [default: 1]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, LONGEST, min_open=True),
    default=600.0,
    metavar="SECONDS",
    help="how long ranks wait for one that does not answer, and on GPUs the longest that one call may take; with "
    "--gpus all end within 10 seconds after it  [default: 600]",
)
@click.option("--dry-run", is_flag=True, help="say what it would take, as omni estimate does, and make nothing")
@click.option("--quiet", is_flag=True, help="print errors only")
@click.option("--json", "as_json", is_flag=True, help="print a line of figures for each video")
@click.option("-v", "--verbose", count=True, help="print what is going on; -vv for more")
@click.pass_context
def run(ctx: click.Context, **options: Any) -> int:
    """Make a talking video from a portrait, a voice and a prompt.

    Without arguments it makes a demo, out/demo.mp4. The built-in avatar knows drawn faces; for a photograph, name a
    configuration with real weights, such as omniavatar-1.3b.
    """
    maker, videos = ask(ctx, options)
    if options["dry_run"]:
        from omniavatar.cli.estimate import estimate_videos

        return estimate_videos(maker, videos)
    if maker.config.gpus > maker.world.size:
        maker.check(videos)
        return start_ranks(maker.config.gpus, "run", [*ctx.meta[ARGUMENTS], f"--seed={maker.config.seed}"])
    code = as_rank(maker.world, maker.device, options["timeout"], lambda: maker.make(videos), maker.rescue)
    if not code and options.get("image") and not (options["config"] or options["models"] or options["quiet"]):
        click.echo("omni: the built-in avatar knows drawn faces; for a photograph: --config omniavatar-1.3b", err=True)
    return code


def ask(ctx: click.Context, options: Mapping[str, Any]) -> tuple[VideoMaker, list[Video]]:
    """Who makes the videos that the options ask for, and which these are."""
    begin: Start = ctx.obj
    inputs, settings = split_values(options, begin.units)
    config = begin.final({key: options[key] for key in FLAGS if options[key] is not None}, settings)
    given = {**config.inputs, **inputs}
    if options["input_file"] is None and asks_for_the_demo(given, begin.units):
        given = {**DEMO, **given}
    videos = planned_videos(given, options["input_file"])
    shape = {name: options[name] for name in ("size", "seconds", "quiet", "as_json")}
    check_ranks(begin.world, config)
    return VideoMaker(begin, config, **shape), videos


def asks_for_the_demo(inputs: Mapping[str, Any], units: Mapping[str, type[PipelineUnit]]) -> bool:
    """Whether nothing says what to show, and the units take what the demo shows."""
    taken = {name for unit in units.values() for name in unit.Inputs.model_fields}
    return not set(inputs) - {"output"} and set(DEMO) - {"output"} <= taken


def planned_videos(inputs: dict[str, Any], input_file: str | None) -> list[Video]:
    """One video, or one a line of the list."""
    if input_file is None:
        return [Video(inputs)]
    from omniavatar.original import read_samples

    path = Path(input_file)
    folder = Path(inputs.pop("output", Path("out", path.stem)))
    return [
        Video(
            {**inputs, **sample.inputs, "output": folder / f"result_{sample.line - 1:03d}.mp4"},
            place=f"{path}, line {sample.line}",
        )
        for sample in read_samples(path)
    ]
