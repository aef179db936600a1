"""`omni run`: make videos. Options beyond the core ones come from the units of the plan (see `options.py`)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.logging import RichHandler

from omniavatar.cli.options import split_values, unit_options
from omniavatar.config import RunConfig, find_config, parse_config, read_yaml
from omniavatar.errors import InputError, OmniError
from omniavatar.resources import asset

if TYPE_CHECKING:
    from omniavatar.checkpoints import Registry
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.plan import Catalog
    from omniavatar.engine.unit import PipelineUnit

DEFAULT_CONFIG = "tiny"


@dataclass(frozen=True)
class Start:
    """What is known before the options can be parsed: configuration, units to choose from, units chosen."""

    config: RunConfig
    registry: Registry
    catalog: Catalog

    @property
    def units(self) -> dict[str, type[PipelineUnit]]:
        from omniavatar.engine.plan import parse

        return {name: self.catalog.units[name] for name in parse(self.config.units, self.catalog)}


class RunCommand(click.Command):
    """A command whose options depend on `--units` and `--config`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = start(early_options(args))
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *(unit_options(ctx.obj.units.values()) if ctx.obj else ())]


EARLY = [
    click.Option(["--units"], metavar="PLAN", help="plan expression, such as default+teacache(threshold=0.2)-lora"),
    click.Option(
        ["--config"], metavar="FILE", help="YAML configuration, ours or the original's  [default: the tiny model]"
    ),
    click.Option(["--hp"], metavar="KEY=VALUE,...", help="settings in the original's words, such as num_steps=25"),
    click.Option(["--model", "models"], multiple=True, metavar="PATH", help="model file, folder or pattern; repeatable"),
    click.Option(["--models-dir"], metavar="FOLDER", help="where relative model paths of the configuration start"),
]


def early_options(args: list[str]) -> dict[str, Any]:
    """The options that decide which other options there are."""
    scan = click.Command(
        "scan", params=EARLY, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
    )
    scan.add_help_option = False
    return dict(scan.make_context("scan", list(args), resilient_parsing=True).params)


def start(early: Mapping[str, Any]) -> Start:
    """Read the configuration and find the plugins."""
    from omniavatar.checkpoints import Registry
    from omniavatar.plugins import discover

    plugins = discover()
    config = configuration(early)
    return Start(config, Registry(plugins.checkpoint_tables()), plugins.catalog())


def configuration(early: Mapping[str, Any]) -> RunConfig:
    """The configuration file with the early options laid over it."""
    from omniavatar import original

    hparams = original.parse_hparams(early.get("hp") or "")
    path = find_config(early.get("config") or DEFAULT_CONFIG)
    content = read_yaml(path)
    if original.is_original(content):
        config = original.translate(content, hparams, path)
    else:
        config = original.override(parse_config(content, path), hparams)
    changes: dict[str, Any] = {}
    if early.get("units"):
        changes["units"] = early["units"]
    if early.get("models_dir"):
        changes["models_dir"] = early["models_dir"]
    if early.get("models"):
        kept = config.model_dump()["models"] if early.get("config") else ()
        changes["models"] = (*kept, *({"path": str(Path(model).absolute())} for model in early["models"]))
    return parse_config({**config.model_dump(), **changes}, path) if changes else config


def size_of(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`HEIGHTxWIDTH`, multiples of 16."""
    if value is None:
        return None
    height, _, width = value.partition("x")
    if not (height.isdigit() and width.isdigit()) or not int(height) or int(height) % 16 or not int(width) or int(width) % 16:
        raise InputError(f"--size is '{value}'; give HEIGHTxWIDTH in positive multiples of 16, such as 400x720")
    return int(height), int(width)


@click.command(cls=RunCommand, context_settings={"max_content_width": 120})
@click.option("--input-file", metavar="FILE", help="many videos: a line each, prompt@@image@@audio; --output is a folder")
@click.option("--size", callback=size_of, metavar="HxW", help="size in pixels  [default: the nearest of the unit's table]")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="length  [default: that of the sound]")
@click.option("--seed", type=click.IntRange(0, 2**40), help="seed of the noise  [default: 42]")
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: cuda if there is one]")
@click.option("--dtype", type=click.Choice(["auto", "bf16", "fp16", "fp32"]), help="precision of the networks")
@click.option("--quiet", is_flag=True, help="print errors only")
@click.option("--json", "as_json", is_flag=True, help="print one line of figures at the end")
@click.option("-v", "--verbose", count=True, help="print what is going on; twice for more")
@click.pass_context
def run(ctx: click.Context, **options: Any) -> int:
    """Make a talking video from a portrait, a voice and a prompt.

    Without arguments it makes a demo video with the built-in tiny model.
    """
    begin: Start = ctx.obj
    set_up_logging(options.pop("verbose"))
    core = {name: options.pop(name) for name in ("input_file", "size", "seconds", "quiet", "as_json")}
    config = begin.config.model_copy(update={key: options[key] for key in TOP_LEVEL if options.get(key) is not None})
    inputs, settings = split_values(options, begin.units)
    jobs = planned_jobs({**config.inputs, **inputs}, core)
    return Run(begin, config, settings, core).make(jobs)


run.params = [*EARLY, *run.params]
TOP_LEVEL = ("seed", "device", "dtype")


def set_up_logging(verbosity: int) -> None:
    """Warnings always; what is going on with -v; everything with -vv."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=verbosity > 1)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s", force=True)
    logging.getLogger("omniavatar").setLevel(level)


def planned_jobs(inputs: dict[str, Any], core: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inputs of every video: one, or one a line of the list; the demo's if nothing was given."""
    if core["input_file"]:
        from omniavatar.original import read_samples

        folder = Path(inputs.pop("output", f"out/{Path(core['input_file']).stem}"))
        samples = read_samples(Path(core["input_file"]))
        return [{**inputs, **sample.inputs, "output": folder / f"result_{sample.index:03d}.mp4"} for sample in samples]
    if not {"prompt", "image", "audio"} & set(inputs) and core["seconds"] is None:
        demo = {"image": asset("demo", "portrait.png"), "audio": asset("demo", "speech.flac"), "output": "out/demo.mp4"}
        return [{**demo, **inputs}]
    return [inputs]


class Run:
    """One call of `omni run`: loads the models once and makes all videos."""

    def __init__(
        self, begin: Start, config: RunConfig, settings: dict[str, dict[str, Any]], core: Mapping[str, Any]
    ) -> None:
        self.begin = begin
        self.config = config
        self.settings = settings
        self.core = core
        self.err = Console(stderr=True)

    def make(self, jobs: list[dict[str, Any]]) -> int:
        """Make the videos; returns the exit code. In a list, a bad line does not stop the others."""
        from omniavatar.cli.progress import Watcher

        watcher = Watcher(None if self.core["quiet"] else self.err)
        engine = self.engine(watcher)
        requests = [self.request(inputs, engine) for inputs in jobs]
        failed = 0
        with watcher:
            for request, error in requests:
                if error is None:
                    error = self.one(engine, watcher, request)
                if error is not None:
                    if len(jobs) == 1:
                        raise error
                    failed += 1
                    self.err.print(f"omni: {request.inputs['output']}: {error}", style="red", highlight=False)
        return InputError.exit_code if failed else 0

    def engine(self, watcher: Any) -> Engine:
        """The engine for this configuration; headers are read, weights are not."""
        from omniavatar.checkpoints import Bundle
        from omniavatar.engine.engine import Engine
        from omniavatar.engine.plan import build_plan

        bundle = Bundle.open(self.config.model_files(), self.begin.registry)
        layers = (bundle.settings(), self.config.settings, self.settings)
        plan = build_plan(self.config.units, self.begin.catalog, *layers)
        device = torch_device(self.config.device)
        return Engine(plan, bundle, device=device, dtype=torch_dtype(self.config.dtype, device), observers=[watcher])

    def request(self, inputs: dict[str, Any], engine: Engine) -> tuple[Any, OmniError | None]:
        """The request for these inputs, and what is wrong with it, before anything is loaded."""
        from omniavatar.engine.scopes import Request

        height, width = self.core["size"] or (None, None)
        request = Request(inputs, self.config.seed, height, width, self.core["seconds"], self.config.fps)
        known = engine.plan.input_fields
        if "output" not in known:
            inputs.pop("output", None)
        try:
            engine.plan.parse_inputs(inputs)
        except OmniError as error:
            return request, error
        return request, None

    def one(self, engine: Engine, watcher: Any, request: Any) -> OmniError | None:
        """Make one video and say where it is."""
        try:
            if not watcher.figures.load_seconds:
                watcher.load(engine)
            job = engine.generate(request)
        except OmniError as error:
            return error
        self.report(engine, watcher, job)
        return None

    def report(self, engine: Engine, watcher: Any, job: Any) -> None:
        """The last line: where the video is, or the figures as JSON."""
        video = job.results.get("video")
        seconds = job.length / job.fps
        if self.core["as_json"]:
            click.echo(json.dumps(figures(engine, watcher, job)))
        elif not self.core["quiet"]:
            took = watcher.figures.generate_seconds
            click.echo(f"{video}  ({seconds:.2f} s of video in {took:.1f} s)")


def figures(engine: Engine, watcher: Any, job: Any) -> dict[str, Any]:
    """What a run did, as JSON values."""
    import resource

    height, width = job.size
    counted = {key: round(value, 3) for key, value in asdict(watcher.figures).items() if not key.startswith("_")}
    return {
        "video": str(job.results.get("video")),
        "frames": job.length,
        "fps": job.fps,
        "height": height,
        "width": width,
        "units": [repr(unit) for unit in engine.plan.units],
        "device": str(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        **counted,
    }


def torch_device(name: str) -> Any:
    """The device of this name; "auto" is the GPU if there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device '{name}'; choices: auto, cpu, cuda, cuda:0, cuda:1, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"there is no device '{name}' here; {torch.cuda.device_count()} CUDA devices were found")
    return device


def torch_dtype(name: str, device: Any) -> Any:
    """The precision of this name; "auto" is bf16 on a GPU and fp32 on the CPU."""
    import torch

    if name == "auto":
        name = "fp32" if device.type == "cpu" else "bf16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


