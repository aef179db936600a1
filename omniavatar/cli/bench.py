"""`omni bench`: what combinations of units cost, and what they do to the pictures (docs/benchmarks.md)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import click

from omniavatar.bench.cases import Matrix, Suite, named, read_suite
from omniavatar.cli import diagnosis
from omniavatar.cli.console import say, saying_faults, tell
from omniavatar.cli.demo import DEMO, asks_for_the_demo
from omniavatar.cli.fields import UserPath
from omniavatar.cli.options import DEVICE, FPS, moved_options, split_values, unit_options
from omniavatar.cli.progress import Progressing, display_for
from omniavatar.cli.run import (
    ARGUMENTS,
    RunCommand,
    asked_size,
    parse_size,
    seconds_of,
    size_options,
    with_hyphens,
)
from omniavatar.cli.start import EARLY, Start, start
from omniavatar.config import DEFAULT_UNITS, changed_plan, merge_settings, parse_config
from omniavatar.engine.settings import Chosen, file_layer
from omniavatar.errors import InputError, OmniError, OutputError, PlanError, nearest
from omniavatar.opening import entry_from_here
from omniavatar.threads import suit_threads

if TYPE_CHECKING:
    from omniavatar.bench.compare import Regression
    from omniavatar.bench.measurements import Metrics
    from omniavatar.bench.record import Asked, Record
    from omniavatar.bench.runner import Contender, Runner, Schedule
    from omniavatar.config import RunConfig
    from omniavatar.engine.engine import Engine
    from omniavatar.training.data.generated import ClipGenerator

BENCH_EARLY = (
    click.Option(
        ["--units"], multiple=True, metavar="PLAN", help="a combination; repeatable, the first is the reference"
    ),
    click.Option(
        ["--matrix"],
        multiple=True,
        metavar="UNIT",
        help="try every on/off combination of these units on top of --units (default: default); repeatable; of several "
        "settings of one unit, one at a time",
    ),
    click.Option(
        ["--suite"],
        metavar="FILE",
        help="combinations and settings from a file, or the name of a packaged one: caches, exact, guidance, quick, "
        "steps  [default: quick, if nothing else is named]",
    ),
    click.Option(
        ["--weights"],
        multiple=True,
        metavar="[ROLE=]FILE",
        help="every combination once more with this file in the place of the network that it holds, such as a "
        "quantised one; repeatable",
    ),
    *(option for option in EARLY if option.name in ("config", "models", "loras", "models_dir", "search")),
)
DEMO_SECONDS = 2.0
LARGEST_SEED = 2**40 - 1
FLAGS = ("fps", "device", "dtype")
FAILED = 1
DRAWN = "omniavatar-drawn"
"""The package with generated faces and metrics that read them."""


@dataclass(frozen=True)
class BenchStart(Start):
    """`chosen` are the units of all combinations; `cases` those of each, by name, or why there is none.

    configs: by name, the configurations of combinations that have other model files.
    """

    suite: Suite
    cases: Mapping[str, Chosen | OmniError]
    configs: Mapping[str, RunConfig]

    @classmethod
    def of(cls, early: Mapping[str, Any]) -> BenchStart:
        """What the suite and the early options say. Raises PlanError for a unit on the command line that is unknown."""
        from omniavatar.engine.plan import choose

        typed = typed_expressions(early["units"], early["matrix"])
        files: tuple[str, ...] = early["weights"]
        if files and not typed and not early["suite"]:
            typed = [DEFAULT_UNITS]
        source = early["suite"] or (None if typed else "quick")
        suite = Suite() if source is None else read_suite(source)
        listed = suite.expressions() if source is not None else []
        begin = start({**early, "units": None, "config": early["config"] or suite.config})
        for unit in suite.settings:
            if unit not in begin.catalog.units:
                near = nearest(unit, begin.catalog.units)
                raise InputError(f"the suite {source} has settings for an unknown unit '{unit}'{near}")
        cases: dict[str, Chosen | OmniError] = {}
        pairs = [(expression, file) for expression in (*listed, *typed) for file in (None, *files)]
        of_names = dict(zip(named([label(*pair) for pair in pairs]), pairs, strict=True))
        for number, (name, (expression, _)) in enumerate(of_names.items()):
            try:
                cases[name] = choose(changed_plan(begin.config.units, expression), begin.catalog)
            except PlanError as error:
                if number >= len(listed) * (1 + len(files)):
                    raise
                cases[name] = error
        known = [units for units in cases.values() if not isinstance(units, OmniError)]
        chosen: Chosen = {unit: {} for units in known for unit in units}
        settings = merge_settings(begin.config.settings, suite.settings)
        changes = {"settings": settings, "seed": 0}  # seeds are those of the suite
        config = parse_config({**dict(begin.config), **changes}, source or "command line")
        layer = file_layer(source, settings) if suite.settings else begin.file
        others = {} if early.get("help") else {file: with_weights(config, file) for file in files}
        configs = {name: others[file] for name, (_, file) in of_names.items() if file in others}
        common = (begin.overrides, begin.catalog, begin.plugins, chosen, layer, begin.world)
        return cls(config, *common, suite, cases, configs)

    def case(self, name: str) -> Start:
        """That of one combination. Raises why there is none."""
        chosen = self.cases[name]
        if isinstance(chosen, OmniError):
            raise chosen
        config = self.configs.get(name, self.config)
        return Start(config, self.overrides, self.catalog, self.plugins, chosen, self.file, self.world)


def label(expression: str, file: str | None) -> str:
    """The name of a combination: its plan expression, and the model file that it has instead of the configured one."""
    return expression if file is None else f"{expression} with {Path(file).name}"


def with_weights(config: RunConfig, file: str) -> RunConfig:
    """A configuration with a model file in the place of the one of the same network. Raises InputError."""
    entry = {"instead": True, **entry_from_here(file)}
    if not Path(entry["path"]).exists():
        raise InputError(f"--weights {file}: there is no file {entry['path']}; give one that is there")
    return parse_config({**dict(config), "models": (*config.models, entry)}, "--weights")


def typed_expressions(units: tuple[str, ...], matrix: tuple[str, ...]) -> list[str]:
    """The combinations that the command line names."""
    if not matrix:
        return list(units)
    return [one for base in units or ("default",) for one in Matrix(base=base, units=matrix).expressions()]


class BenchCommand(RunCommand):
    """A command whose options are those of the units of all combinations."""

    note = (
        "Inputs and settings of units hold for every combination that has the unit; what stands in a plan is stronger. "
        "omni docs benchmarks says how it is measured and what the report means."
    )
    early = BENCH_EARLY

    def begin(self, early: Mapping[str, Any]) -> Start:
        return BenchStart.of(early)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Without the files of single videos, which go to the folder of the report."""
        own = click.Command.get_params(self, ctx)
        if not isinstance(ctx.obj, Start):
            return own
        reserved = {str(param.name) for param in own} - {"output"}
        begin = ctx.obj
        options = [option for option in unit_options(begin.units.values(), reserved) if option.name != "output"]
        return [*own, *options, *moved_options(begin.catalog.units, begin.units)]


@click.command(
    cls=BenchCommand,
    params=list(BENCH_EARLY),
    context_settings={"max_content_width": 120, "token_normalize_func": with_hyphens},
)
@click.option(
    "--output",
    "-o",
    type=UserPath(),
    metavar="FOLDER",
    default="out/bench",
    help="folder of the report  [default: out/bench]",
)
@click.option(
    "--compare",
    type=UserPath(),
    metavar="FILE",
    help="bench.json of an earlier run: say what is worse, and exit with 1",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 10),
    default=0.05,
    metavar="NUMBER",
    help="share by which a time may grow beyond noise  [default: 0.05]",
)
@click.option(
    "--repeats",
    type=click.IntRange(0, 1000),
    metavar="INTEGER",
    help="timed videos each; 0: compare the pictures alone  [default: 3]",
)
@click.option("--warmup", type=click.IntRange(0, 100), metavar="INTEGER", help="videos before them  [default: 1]")
@click.option(
    "--no-interleave", is_flag=True, help="one combination after the other, so that only one is in memory at a time"
)
@click.option(
    "--faces/--no-faces",
    default=None,
    help="a generated portrait for each seed as image and prompt, which a package such as omniavatar-drawn brings",
)
@size_options
@click.option(
    "--seconds", type=float, callback=seconds_of, metavar="NUMBER", help="length of a video  [default of the demo: 2]"
)
@FPS
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=click.IntRange(0, LARGEST_SEED),
    metavar="INTEGER",
    help="seed of the noise; repeatable, a video each  [default: 42]",
)
@DEVICE
@click.option(
    "--dtype", metavar="auto|bf16|fp16|fp32", help="precision of the networks  [default: bf16 on a GPU, or fp32]"
)
@click.option("--quiet", is_flag=True, help="print errors only")
@click.option("-v", "--verbose", count=True, help="print what is going on; -vv for more")
@click.pass_context
def bench(ctx: click.Context, **options: Any) -> int:
    """Compare combinations of units: what each costs, and what it does to the pictures.

    \b
    omni bench                                                      the suite "quick" on the built-in model
    omni bench --units default --units default+teacache --seed 1 --seed 2
    omni bench --matrix teacache --matrix cfg-merge                  default, and with one or both of them
    omni bench --suite caches --model FILE ... --compare before.json
    omni bench --weights q8.gguf --weights q4.gguf                   default, and with these files instead of its own

    Writes bench.json and bench.html, a page that needs nothing else, and the videos. Exit code: 1 if a combination
    failed or --compare found one that is worse, 2 for bad input or if no combination can be made.
    """
    begin: BenchStart = ctx.obj
    if begin.world.size > 1:
        raise InputError("omni bench measures one process; start it without torchrun or Slurm")
    study = Study.of(begin, options, ["omni", "bench", *ctx.meta[ARGUMENTS]])
    return study.run()


@dataclass
class Study:
    """One call of the command."""

    begin: BenchStart
    config: RunConfig
    schedule: Schedule
    folder: Path
    inputs: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    options: Mapping[str, Any]
    command: list[str]
    metrics: Metrics
    generator: type[ClipGenerator] | None = None
    lacks_faces: bool = False
    has_threads: bool = False

    @classmethod
    def of(cls, begin: BenchStart, options: Mapping[str, Any], command: list[str]) -> Study:
        """Options of the command line over those of the suite. Raises InputError."""
        from omniavatar.bench.runner import Schedule
        from omniavatar.engine.plan import make_unit

        suite = begin.suite
        inputs, settings = split_values({**options, "output": None}, begin.units, begin.catalog.units)
        for name, values in settings.items():
            make_unit(begin.units[name], values)
        given = {name: value for name, value in {**begin.config.inputs, **inputs}.items() if name != "output"}
        wants_faces = suite.faces and "image" not in given if options["faces"] is None else options["faces"]
        with saying_faults(begin.plugins):
            metrics = begin.plugins.metrics()
            generator = portraits_of(begin.plugins.clip_generators()) if wants_faces else None
        faces = generator is not None
        if options["faces"] and not faces:
            raise InputError(f"--faces needs a package that generates portraits; install {DRAWN}, or give --image")
        schedule = Schedule(
            seeds=tuple(dict.fromkeys(options["seeds"] or suite.seeds)),
            repeats=suite.repeats if options["repeats"] is None else options["repeats"],
            warmup=suite.warmup if options["warmup"] is None else options["warmup"],
            interleaved=not options["no_interleave"],
        )
        size = asked_size(options) or size_in(suite, options["suite"])
        seconds = options["seconds"] or suite.seconds
        if faces:
            check_faces(given, size)
        if faces or asks_for_the_demo(given, begin.units):
            demo = {"audio": DEMO["audio"]} if faces else {name: DEMO[name] for name in ("image", "audio")}
            given, seconds = {**demo, **given}, seconds or DEMO_SECONDS
        flags = {key: options[key] for key in FLAGS if options[key] is not None}
        return cls(
            begin=begin,
            config=begin.final(flags, settings),
            schedule=schedule,
            folder=options["output"],
            inputs=given,
            settings=settings,
            options={**options, "size": size, "seconds": seconds, "flags": flags},
            command=command,
            metrics=metrics,
            generator=generator,
            lacks_faces=wants_faces and not faces,
        )

    def run(self) -> int:
        """Measure, write and show; returns the exit code."""
        from omniavatar.bench.compare import check_comparable
        from omniavatar.bench.record import Record
        from omniavatar.bench.runner import Runner

        asked, path = self.asked(), self.options["compare"]
        before = None if path is None else Record.read(path)
        if before is not None:
            check_comparable(before.asked, asked, path)
        check_writable(self.folder)
        makers = {name: self._maker(number, name) for number, name in enumerate(self.begin.cases, start=1)}
        with display_for(Progressing(), quiet=self.options["quiet"]) as display:
            runner = Runner(
                makers,
                self.schedule,
                device=asked.device,
                show=display.show,
                metrics=self.metrics,
                generator=None if self.generator is None else self.generator.name,
                explain=explained,
            )
            outcomes = runner.run()
        if all(outcome.status == "refused" for outcome in outcomes):
            raise PlanError(f"no combination can be made; {outcomes[0].name}: {outcomes[0].reason}")
        return self.report(runner, asked, before)

    def report(self, runner: Runner, asked: Asked, before: Record | None) -> int:
        """Write the files, print the table; returns the exit code, or raises what interrupted the measurement."""
        from omniavatar.bench.compare import regressions, same_device
        from omniavatar.bench.page import page
        from omniavatar.bench.table import tables

        record = self.record(runner, asked)
        worse = [] if before is None else regressions(before, record, self.options["tolerance"])
        frames = {one.name: one.frames for one in runner.outcomes if one.frames is not None}
        record.write(self.folder / "bench.json")
        (self.folder / "bench.html").write_text(page(record, frames, [str(one) for one in worse]), encoding="utf-8")
        if not self.options["quiet"]:
            tell(*(part for table in tables(record) for part in (table, "")), markup=True)
            tell(f"report: {self.folder / 'bench.html'}; figures: {self.folder / 'bench.json'}")
            if not self.metrics or self.lacks_faces:
                tell(f"these are the general measures; the package {DRAWN} adds those of drawn faces, with portraits")
        for (package, metric), reason in runner.asking.faults.items():
            say(f"metric '{metric}' of {package} failed and was left out: {reason}")
        for outcome in runner.outcomes:
            if outcome.status == "failed":
                say(f"{outcome.name} failed: {outcome.reason}")
        if before is not None:
            self.say_differences(worse, same_machine=same_device(before, record))
        if runner.interrupted is not None:
            raise runner.interrupted
        failed = any(outcome.status == "failed" for outcome in runner.outcomes)
        return FAILED if failed or worse else 0

    def say_differences(self, worse: list[Regression], *, same_machine: bool) -> None:
        """A line for each regression."""
        if not same_machine:
            say("the earlier record is from another device, so times and memory are not compared")
        for one in worse:
            say(f"worse than before: {one}")
        if not worse and not self.options["quiet"]:
            tell(f"nothing is worse than in {self.options['compare']}")

    def record(self, runner: Runner, asked: Asked) -> Record:
        """What was found."""
        from omniavatar.bench.machine import machine
        from omniavatar.bench.record import Machine, Record

        first = runner.outcomes[0]
        return Record(
            title=self.begin.suite.title,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=shlex.join(self.command),
            interrupted=runner.interrupted is not None,
            machine=Machine(**machine(asked.device)),
            asked=asked,
            combinations=tuple(outcome.combination(first, runner.asking) for outcome in runner.outcomes),
        )

    def asked(self) -> Asked:
        """What is measured, as it is written down."""
        from omniavatar.bench.record import Asked
        from omniavatar.opening import torch_device, torch_dtype

        config, schedule = self.config, self.schedule
        device = torch_device(config.device)
        files = [path for file in config.model_files() for path in ([file] if isinstance(file, str) else file)]
        return Asked(
            models=tuple(Path(file).name for file in files),
            device=str(device),
            dtype=str(torch_dtype(config.dtype, device)).removeprefix("torch."),
            inputs={name: value.name if isinstance(value, Path) else str(value) for name, value in self.inputs.items()},
            faces=self.generator is not None,
            size=self.options["size"],
            seconds=self.options["seconds"],
            fps=config.fps,
            seeds=schedule.seeds,
            settings=merge_settings(self.begin.config.settings, self.settings),
            repeats=schedule.repeats,
            warmup=schedule.warmup,
            interleaved=schedule.interleaved,
        )

    def _maker(self, number: int, name: str) -> Callable[[], Contender]:
        """What makes the engine of a combination, and the requests to it."""

        def make() -> Contender:
            from omniavatar.bench.probe import Probe
            from omniavatar.bench.runner import Contender
            from omniavatar.cli.videos import Video, VideoMaker

            case, probe = self.begin.case(name), Probe()
            config = case.final(self.options["flags"], self.settings)
            shape = {key: self.options[key] for key in ("size", "seconds")}
            maker = VideoMaker(case, config, **shape, quiet=True, as_json=False, observers=(probe,))
            engine = maker.engine(case.world, maker.device)
            self._suit_threads(engine)
            taken = engine.plan.input_fields
            requests = {}
            for seed in self.schedule.seeds:
                inputs = {key: value for key, value in self._inputs(number, seed).items() if key in taken}
                requests[seed] = replace(maker.request(engine, Video(inputs)), seed=seed)
            import_networks(engine)
            return Contender(engine, requests, maker.watcher, probe)

        return make

    def _suit_threads(self, engine: Engine) -> None:
        """Choose the number of threads with the first engine: it must be the same for all combinations."""
        if not self.has_threads:
            self.has_threads = True
            suit_threads(engine)

    def _inputs(self, number: int, seed: int) -> dict[str, Any]:
        """The inputs of one video."""
        face = {} if self.generator is None else face_inputs(self.generator, seed, self.folder / "inputs")
        return {**face, **self.inputs, "output": self.folder / "videos" / f"{number:02}-seed{seed}.mp4"}


def import_networks(engine: Engine) -> None:
    """Import the classes of the engine's networks, so that the first combination does not load Python code as well."""
    from omniavatar.checkpoints import Bundle
    from omniavatar.checkpoints.loading import import_network

    if isinstance(engine.models, Bundle):
        for role in engine.roles:
            for component in engine.models.components(role):
                if component.spec.network is not None:
                    import_network(component.spec.network)


def size_in(suite: Suite, name: str | None) -> tuple[int, int] | None:
    """Height and width. Raises InputError that names the suite."""
    try:
        return None if suite.size is None else parse_size(suite.size)
    except InputError as error:
        raise InputError(f"suite {name}: {str(error).removeprefix('--')}") from None


def portraits_of(generators: Mapping[str, type[ClipGenerator]]) -> type[ClipGenerator] | None:
    """The first generator that has portraits on which no network was trained; None if there is none."""
    return next((one for one in generators.values() if one.unseen(0) is not None), None)


def face_inputs(generator: type[ClipGenerator], seed: int, folder: Path) -> dict[str, Any]:
    """Portrait (a file in the folder) and prompt of a seed."""
    from PIL import Image

    clip = generator.unseen(seed)
    if clip is None:
        raise InputError(f"the clip generator '{generator.name}' has no portrait for seed {seed}; give another --seed")
    path = folder / f"face-{seed}.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(clip.pictures(0, 1)[0]).save(path)
    return {"image": path, "prompt": clip.prompt}


def check_faces(inputs: Mapping[str, Any], size: tuple[int, int] | None) -> None:
    """Refuse what does not go with generated portraits, which are square."""
    if "image" in inputs:
        raise InputError("--faces brings an image for each seed; leave --image out, or --faces")
    if size is not None and size[0] != size[1]:
        raise InputError(f"--size is {size[1]}x{size[0]} and generated portraits are square; give such as 128x128")


def check_writable(folder: Path) -> None:
    """Make the folder if it is not there. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(f"cannot write to the folder {folder}: {error.strerror}; choose another place") from None


def explained(error: Exception) -> str:
    """Why something went wrong, in a line."""
    message, _ = diagnosis(error)
    if not message:
        lines = str(error).strip().splitlines()
        message = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if message.startswith("out of memory"):
        message += "; or --no-interleave, which holds one combination at a time"
    return " ".join(message.split())
