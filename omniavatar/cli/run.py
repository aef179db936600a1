"""`omni run`: make videos. Options beyond the core ones come from the units of the plan (see `options.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omniavatar.cli.again import expanded, remember
from omniavatar.cli.console import logging_to_stderr
from omniavatar.cli.demo import DEMO, DEMO_OUTPUT, asks_for_the_demo, completed
from omniavatar.cli.options import (
    DEVICE,
    FPS,
    UnitOption,
    input_option,
    moved_options,
    split_values,
    unit_options,
)
from omniavatar.cli.outputs import OUTPUT, with_output
from omniavatar.cli.ranks import as_rank, check_ranks, start_ranks
from omniavatar.cli.start import EARLY, Start, early_options, start
from omniavatar.cli.synonyms import meant
from omniavatar.cli.videos import Video, VideoMaker
from omniavatar.distributed.world import place, tells_for_all
from omniavatar.errors import InputError, OmniError, PlanError, nearest

if TYPE_CHECKING:
    from omniavatar.engine.unit import PipelineUnit

ARGUMENTS = "omniavatar.arguments"
LONGEST = 24 * 60 * 60
FLAGS = ("seed", "fps", "device", "dtype", "gpus")
"""Options that stand for the field of this name in the configuration."""


def with_hyphens(name: str) -> str:
    """Options may also be written with underscores."""
    return name.replace("_", "-")


PREVIEW = ("write-video", "preview")


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
        early = early_options(args, with_hyphens, (*self.early, click.Option(["-h", "short_help"], is_flag=True)))
        early["help"] |= early.pop("short_help")
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
        begin, reserved = ctx.obj, {str(param.name) for param in own}
        return [*own, *unit_options(begin.units.values(), reserved), *moved_options(begin.catalog.units, begin.units)]

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


class OmniRun(RunCommand):
    """`omni run`, which can be told to do again what was done."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, expanded(args))


def explained(error: click.NoSuchOption, begin: Start) -> OmniError:
    """What is wrong with an option: misspelt, or of a unit that is not in the plan or has no such setting."""
    option = error.option_name
    unit, dot, setting = option.lstrip("-").partition(".")
    if not dot or unit not in begin.catalog.units:
        params = [] if error.ctx is None else error.ctx.command.get_params(error.ctx)
        known = {name for param in params if not getattr(param, "hidden", False) for name in param.opts}
        near = meant(option, known, begin)
        if not near and error.possibilities:
            near = f"did you mean '{error.possibilities[0]}'?"
        takers = [] if near else [name for name, taken in begin.catalog.units.items() if takes(taken, option)]
        if takers:
            hint = f"add one that does with --units '{begin.config.units}+{takers[0]}'"
            return PlanError(f"{option}: no unit of the plan takes it; {hint}")
        command = "omni run" if error.ctx is None else error.ctx.command_path
        return InputError(f"unknown option '{option}'; {near or f'{command} --help lists all'}")
    if unit not in begin.chosen:
        from omniavatar.engine.plan import in_place_of

        taker = in_place_of(unit, begin.chosen, begin.catalog)
        if taker is not None:
            hint = f"'{taker}' is in its place: --{taker}.{setting}"
            return PlanError(f"{option}: unit '{unit}' is not in the plan; {hint}")
        return PlanError(
            f"{option}: unit '{unit}' is not in the plan; add it with --units '{begin.config.units}+{unit}'"
        )
    settings = [with_hyphens(name) for name in begin.units[unit].Settings.model_fields]
    return PlanError(f"{option}: unit '{unit}' has no setting '{setting}'{nearest(setting, settings)}")


def takes(unit: type[PipelineUnit], option: str) -> bool:
    """Whether a unit has an input with this option."""
    return any(option in input_option(name, info).opts for name, info in unit.Inputs.model_fields.items())


def size_of(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`--size`."""
    return None if value is None else parse_size(value)


def parse_size(value: str) -> tuple[int, int]:
    """Height and width of `WIDTHxHEIGHT`, multiples of 16. Raises InputError."""
    sides = [int(side) if side.isascii() and side.isdigit() else 0 for side in value.lower().split("x")]
    if len(sides) != 2 or any(side < 16 or side % 16 for side in sides):
        raise InputError(
            f"--size is '{value}'; give WIDTHxHEIGHT in positive multiples of 16, such as 720x400 for a wide picture, "
            "or --width and --height"
        )
    width, height = sides
    return height, width


def side_of(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """`--width` or `--height`."""
    if value is not None and (value < 16 or value % 16):
        raise InputError(f"{param.opts[0]} is {value}; give a positive multiple of 16")
    return value


def size_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that say how large the video is; `asked_size` reads them."""
    sides = [
        click.option(
            f"--{name}", type=int, callback=side_of, metavar="INTEGER", help=f"the {name} alone, with --{other}"
        )
        for name, other in (("width", "height"), ("height", "width"))
    ]
    size = click.option(
        "--size",
        callback=size_of,
        metavar="WIDTHxHEIGHT",
        help="width, then height, in pixels: 720x400 is wide  [default: the model's size closest to the image's shape]",
    )
    for option in (*sides, size):
        command = option(command)
    return command


def asked_size(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in pixels, if the user has asked for any."""
    size: tuple[int, int] | None = options["size"]
    height, width = options["height"], options["width"]
    if height is None and width is None:
        return size
    if size is not None:
        raise InputError("--size gives width and height already; leave --width and --height out")
    if height is None or width is None:
        missing, side, given = ("height", "width", width) if height is None else ("width", "height", height)
        raise InputError(f"--{side} is {given} and there is no --{missing}; give both")
    return height, width


def seconds_of(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """A positive number, up to a day."""
    if value is not None and not 0 < value <= LONGEST:
        raise InputError(f"--seconds is {value:g}; give a length above 0 and up to {LONGEST}")
    return value


@click.command(
    cls=OmniRun,
    params=list(EARLY),
    context_settings={"max_content_width": 120, "token_normalize_func": with_hyphens},
)
@click.option(
    "--input-file", metavar="FILE", help="many videos: a line each, prompt@@image@@audio; --output is their folder"
)
@size_options
@click.option(
    "--seconds", type=float, callback=seconds_of, metavar="NUMBER", help="length of the video  [default: the audio's]"
)
@FPS
@click.option("--seed", metavar="INTEGER|random", help="seed of the noise; random or -1 draws one  [default: 42]")
@DEVICE
@click.option(
    "--dtype", metavar="auto|bf16|fp16|fp32", help="precision of the networks  [default: bf16 on a GPU, or fp32]"
)
@click.option("--gpus", type=click.IntRange(1), metavar="INTEGER", help="number of GPUs, a process each  [default: 1]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, LONGEST, min_open=True),
    default=600.0,
    metavar="SECONDS",
    help="give up when the process of a GPU does not answer for so long  [default: 600]",
)
@click.option(
    "--again",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="repeat the last command, or the one that made FILE; other options are stronger",
)
@click.option("--preview", is_flag=True, help="let the growing video be watched beside the output: NAME.preview.mp4")
@click.option("--dry-run", is_flag=True, help="say what it would take, as omni estimate does, and make nothing")
@click.option("--quiet", is_flag=True, help="print errors only")
@click.option("--json", "as_json", is_flag=True, help="print a line of figures for each video")
@click.option("-v", "--verbose", count=True, help="print what is going on; -vv for more")
@click.pass_context
def run(ctx: click.Context, **options: Any) -> int:
    """Make a talking video from an image, an audio and a prompt.

    Without arguments it makes a demo, out/demo.mp4. The built-in avatar, which talks where no model is named, knows
    drawn faces; for a photograph, name a configuration with real weights, such as omniavatar-1.3b. Its image and its
    audio are the demo's where you give none; with --seconds and no --audio the video is silent.
    """
    maker, videos = ask(ctx, options)
    if options["dry_run"]:
        from omniavatar.cli.estimates import estimate_videos

        return estimate_videos(maker, videos)
    if tells_for_all():
        remember(ctx.meta[ARGUMENTS])
    if maker.config.gpus > maker.world.size:
        maker.check(videos)
        agreed = [f"--seed={maker.config.seed}", *place_of(videos)]
        return start_ranks(maker.config.gpus, "run", [*ctx.meta[ARGUMENTS], *agreed])
    return as_rank(maker.world, maker.device, options["timeout"], lambda: maker.make(videos), maker.rescue)


def ask(ctx: click.Context, options: Mapping[str, Any]) -> tuple[VideoMaker, list[Video]]:
    """Who makes the videos that the options ask for, and which these are."""
    begin: Start = ctx.obj
    inputs, settings = split_values(options, begin.units, begin.catalog.units)
    if options.get("preview"):
        unit, setting = PREVIEW
        if unit not in begin.units:
            hint = f"add it with --units '{begin.config.units}+{unit}'"
            raise PlanError(f"--preview: the plan has no unit '{unit}'; {hint}")
        settings.setdefault(unit, {}).setdefault(setting, True)
    config = begin.final({key: options[key] for key in FLAGS if options[key] is not None}, settings)
    given, default = {**config.inputs, **inputs}, None
    if options["input_file"] is None and asks_for_the_demo(given, begin.units):
        given, default = {**DEMO, **given}, DEMO_OUTPUT
    given = with_output(given, begin.units, config.seed, list_file=options["input_file"], default=default)
    videos, remarks = planned_videos(given, options["input_file"]), list[str]()
    if not options["models"] and begin.is_built_in(options["config"]):
        videos, remarks = completed(videos, begin.units, options["seconds"])
    shape = {name: options[name] for name in ("seconds", "quiet", "as_json")}
    check_ranks(begin.world, config)
    maker = VideoMaker(begin, config, asked_size(options), **shape, remarks=remarks, command=ctx.meta[ARGUMENTS])
    return maker, videos


def planned_videos(inputs: dict[str, Any], input_file: str | None) -> list[Video]:
    """One video, or one a line of the list."""
    if input_file is None:
        return [Video(inputs)]
    from omniavatar.original import read_samples

    path = Path(input_file).expanduser()
    folder = inputs.get(OUTPUT)
    videos = []
    for sample in read_samples(path):
        output = {} if folder is None else {OUTPUT: Path(folder) / f"result_{sample.line - 1:03d}.mp4"}
        videos.append(Video({**inputs, **sample.inputs, **output}, place=f"{path}, line {sample.line}"))
    return videos


def place_of(videos: Sequence[Video]) -> list[str]:
    """The option that says where the videos go, for ranks, which would else look for a free name again."""
    output = videos[0].inputs.get(OUTPUT)
    if output is None:
        return []
    return [f"--{OUTPUT}={Path(output).parent if videos[0].place else output}"]
