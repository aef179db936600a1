"""`omni train`: train what a configuration says; `omni train prepare`: run the networks that stay as they are, once."""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from omniavatar.cli.console import logging_to_stderr, say, tell
from omniavatar.cli.options import DEVICE
from omniavatar.cli.progress import Display, Progressing, Watcher, display_for
from omniavatar.cli.ranks import Rescue, as_rank, check_ranks, start_ranks
from omniavatar.cli.trainings import opened
from omniavatar.config import PACKAGED, RunConfig, find_config, packaged_configs, validated
from omniavatar.config_base import read_config
from omniavatar.distributed.world import World, place
from omniavatar.engine.progress import Status
from omniavatar.errors import CheckpointError, Ended, InputError
from omniavatar.values import parse_yaml

if TYPE_CHECKING:
    from types import FrameType

    from omniavatar.engine.engine import Engine
    from omniavatar.training.diffusion import Diffusion, DiffusionConfig
    from omniavatar.training.samples import Samples
    from omniavatar.training.trainer import Report, Trainer

KIND = "train"
"""The folder of its packaged configurations."""
PREPARE = "prepare"
USE = "run.yaml"
FIELDS = {
    **{name: name for name in ("models_dir", "output", "device", "gpus")},
    "max_minutes": "trainer.max_minutes",
}
"""Options that stand for a field of the configuration."""


@click.command(context_settings={"max_content_width": 120})
@click.argument("stage", metavar="[prepare]", required=False)
@click.option("--config", metavar="FILE", help="what to train, and how; or the name of a packaged one")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="a field, such as trainer.steps=2000")
@click.option("--models-dir", metavar="FOLDER", help="where relative model paths of the configuration start")
@click.option("--models", "search", multiple=True, metavar="FOLDER", help="search this folder for models; repeatable")
@click.option("--output", metavar="FOLDER", help="folder of checkpoints, log and result; a run found there goes on")
@click.option("--max-minutes", type=float, metavar="NUMBER", help="stop after this time; the same command goes on")
@DEVICE
@click.option("--gpus", type=click.IntRange(1), metavar="INTEGER", help="number of GPUs, a process each  [default: 1]")
@click.option(
    "--workers", type=click.IntRange(1), default=1, metavar="INTEGER", help="processes that prepare  [default: 1]"
)
@click.option(
    "--timeout",
    type=float,
    default=600.0,
    metavar="SECONDS",
    help="give up when the process of a GPU does not answer for so long  [default: 600]",
)
@click.option("--quiet", is_flag=True, help="print errors only")
@click.pass_context
def train(ctx: click.Context, **options: Any) -> int:
    """Train a transformer, its LoRA or its audio layers, on clips of people who talk.

    \b
    omni train prepare --config FILE    run the networks that stay as they are over all clips, once
    omni train --config FILE            train on what they made; the same command goes on with a run that was stopped

    Every field of a configuration is explained by omni docs training.
    """
    check_words(options)
    world = place()
    ctx.with_resource(logging_to_stderr(-1 if options["quiet"] or not world.is_main else 0))
    config = read(options)
    if options["stage"] == PREPARE:
        from omniavatar.cli.prepare import check_alone, prepare

        check_alone(options, world)
        return prepare(config, options["workers"], quiet=options["quiet"])
    check_ranks(world, config)
    if config.gpus > world.size:
        return start_ranks(config.gpus, "train", arguments_of(options))
    return run(config, world, options["timeout"], quiet=options["quiet"])


def check_words(options: Mapping[str, Any]) -> None:
    """Refuse what is no stage, and a missing configuration."""
    stage = options["stage"]
    if stage not in (None, PREPARE):
        is_file = stage.endswith((".yaml", ".yml"))
        hint = f"give a configuration with --config {stage}" if is_file else f"there is '{PREPARE}', or no word at all"
        raise InputError(f"'{stage}' is no stage of training; {hint}")
    if options["config"] is None:
        known = ", ".join(sorted(path.stem for path in packaged_configs(KIND).values()))
        raise InputError(f"--config is missing; name a file, or a packaged configuration: {known}")


def run(config: DiffusionConfig, world: World, timeout: float, *, quiet: bool) -> int:
    """Train as one rank of the world; returns the exit code."""
    from omniavatar.opening import torch_device

    device = torch_device(config.device, world.local_rank)
    rescue = Rescue()
    return as_rank(world, device, timeout, lambda: trained(config, world, rescue, quiet=quiet), rescue)


def trained(config: DiffusionConfig, world: World, rescue: Rescue, *, quiet: bool) -> int:
    """Train to the end, or until the time is up or a signal asks to stop."""
    from omniavatar.distributed.leaving import Stopped
    from omniavatar.opening import tell_of_slow
    from omniavatar.training.folder import claimed
    from omniavatar.training.trainer import Trainer, Visit

    began = time.monotonic()
    diffusion = opened(config, world)
    with display_for(Progressing(), quiet=quiet or not world.is_main) as display, ExitStack() as stack:
        if world.is_main:
            stack.enter_context(claimed(config.output, "output"))
        base = diffusion.base()
        display.show(Status("loading the networks"))
        samples, lenders = samples_of(diffusion)
        task = diffusion.task(samples)
        tell_of_slow(diffusion.dtype, diffusion.device, config.device, world)
        course, stop = Course(display, config.trainer.steps, rescue), Stop(speaks=world.is_main)
        visits = [Visit(1, course)]
        if config.trainer.results_every is not None and world.is_main:
            visits.append(Visit(config.trainer.results_every, lambda trainer: use_of_part(config, trainer)))
        if config.validation is not None:
            watcher = Watcher(display)
            watcher.title = "validation, "
            observers = [watcher, rescue]
            visits.append(Visit(config.validation.every, diffusion.validation([task.engine, *lenders], observers)))
        listeners = [course.listen, *(boards(config, stack) if world.is_main else [])]
        trainer = Trainer(
            task,
            diffusion.config.trainer,
            config.output,
            device=diffusion.device,
            world=world,
            listeners=listeners,
            visits=visits,
            origin=base,
        )
        try:
            with stop:
                is_done = trainer.run(stop.is_asked, began)
            if not is_done and trainer.is_asked(stop.is_asked):
                stop.leave()
        except (KeyboardInterrupt, Ended, Stopped) as error:
            if world.is_main:
                error.add_note(f"{trainer.kept} steps are kept in {config.output}; the same command goes on")
            raise
        hint = use_of(diffusion.config) if is_done and world.is_main else ""
    if world.is_main and not quiet:
        tell(f"{config.output}  ({course.summary(trainer)}){hint}")
    return 0


def use_of_part(config: DiffusionConfig, trainer: Trainer) -> None:
    """Write a configuration with which `omni run` uses a result on the way, beside it."""
    if trainer.is_result_due():
        use_of(config.model_copy(update={"output": trainer.result_folder()}))


def use_of(config: DiffusionConfig) -> str:
    """Write a configuration with which `omni run` uses the result, beside it; returns what to say about that.

    The folder can be moved: the result is named as a file beside the configuration, all others by where they are.
    """
    from omniavatar.plugins import discover
    from omniavatar.training.result import models_with_result

    try:
        models = models_with_result(config, discover().registry())
    except CheckpointError as error:
        say(f"omni run cannot use the result as it is: {error}")
        return ""
    wanted = set(RunConfig.model_fields) - {"base", "models_dir", "device", "gpus"}
    content = config.model_dump(mode="json", include=wanted, exclude_unset=True)
    packaged = config.models_dir.startswith(PACKAGED)
    content["models_dir"] = config.models_dir if packaged else here_or_absolute(config.models_folder, config.output)
    *others, result = models
    content["models"] = [*others, {**result, "path": f"here:{Path(result['path']).name}"}]
    if config.tables:
        content["tables"] = [here_or_absolute(Path(table), config.output) for table in config.tables]
    path = config.output / USE
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return f"\ntry it: omni run --config {shlex.quote(str(path))} --image FILE --audio FILE --prompt TEXT"


def here_or_absolute(path: Path, folder: Path) -> str:
    """A path as the configuration in a folder names it: what lies in the folder moves with it."""
    path, folder = path.absolute(), folder.absolute()
    return f"here:{path.relative_to(folder)}" if path.is_relative_to(folder) else str(path)


def samples_of(diffusion: Diffusion) -> tuple[Samples, list[Engine]]:
    """Where batches come from, and the engines whose networks make them."""
    from omniavatar.training.samples import CachedSamples, LiveSamples

    config = diffusion.config
    if config.cache is not None:
        return CachedSamples.open(config.cache, diffusion.origin(), diffusion.device, hold_gib=config.hold_gib), []
    preparation = diffusion.preparation()
    return LiveSamples(preparation, diffusion.source(config.output), config.samples), [preparation.engine]


class Course:
    """Shows how far a run is, after every update."""

    def __init__(self, display: Display, total: int, rescue: Rescue) -> None:
        self.display, self.total, self.rescue = display, total, rescue
        self.report: Report | None = None
        self.updates = 0
        self.began = time.monotonic()

    def listen(self, report: Report) -> None:
        """Take over the loss."""
        self.report = report

    def __call__(self, trainer: Trainer) -> None:
        self.rescue.note()
        self.updates += 1
        report, step = self.report, trainer.step
        seconds = report.seconds if report else (time.monotonic() - self.began) / self.updates
        loss = f", loss {report.loss:.4f}" if report else ""
        loss += f", {trainer.skipped} skipped" if trainer.skipped else ""
        text = f"step {step}/{self.total}{loss}, {seconds:.2f} s a step"
        self.display.show(Status(text, step, self.total, (self.total - step) * seconds))

    def summary(self, trainer: Trainer) -> str:
        """What became of the run."""
        step, skipped = trainer.step, trainer.skipped
        left_out = f", {skipped} of them skipped: their gradients were no numbers" if skipped else ""
        if step < self.total:
            return f"stopped after {step} of {self.total} steps{left_out}; the same command goes on"
        if not self.updates:
            return f"trained before, {step} steps{left_out}; to train on, add --set trainer.steps=NUMBER"
        return f"trained, {step} steps{left_out}"


class Stop:
    """Lets Ctrl-C and its like wait for the update in work, so that a checkpoint is one of whole updates on all ranks.

    A second one does not wait. speaks: whether to tell the user.
    """

    NAMES = ("SIGINT", "SIGTERM", "SIGHUP")

    def __init__(self, *, speaks: bool = True) -> None:
        self.speaks = speaks
        self.before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self.asked: int | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in self.NAMES if hasattr(signal, name)):
                handler = signal.getsignal(number)
                if callable(handler):
                    self.before[number] = handler
                    signal.signal(number, self._ask)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            if signal.getsignal(number) == self._ask:  # else a second one has made other arrangements
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            self.before[number](number, frame)
        self.asked = number
        if self.speaks:
            say("stopping after this step; once more stops at once")

    def is_asked(self) -> bool:
        """Whether a signal has come."""
        return self.asked is not None

    def leave(self) -> None:
        """Do what the signal would have done at once; one that has come to another rank ends this one too."""
        number = self.asked or signal.SIGTERM
        self.before[number](number, None)


def boards(config: DiffusionConfig, stack: ExitStack) -> list[Callable[[Report], None]]:
    """A listener that writes for TensorBoard, where that is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return []
    writers: list[Any] = []

    def write(report: Report) -> None:
        if not writers:  # what a run wrote beyond the step from which this one goes on does not count
            writers.append(SummaryWriter(str(config.output / "tensorboard"), purge_step=report.step))
            stack.callback(writers[0].close)
        for name in ("loss", "gradient", "learning_rate", "seconds"):
            writers[0].add_scalar(name, getattr(report, name), report.step)
        writers[0].flush()

    return [write]


def read(options: Mapping[str, Any]) -> DiffusionConfig:
    """The configuration with the options laid over it."""
    from omniavatar.opening import absolute
    from omniavatar.training.diffusion import DiffusionConfig

    path = find_config(options["config"], KIND)
    content = read_config(path, KIND)
    for change in options["changes"]:
        key, value = parse_change(change)
        lay_over(content, key, value)
    for option, key in FIELDS.items():
        if options[option] is not None:
            lay_over(content, key, options[option])
    if options.get("search"):
        lay_over(content, "search", [*map(absolute, options["search"]), *content.get("search", ())])
    return validated(DiffusionConfig, content, path)


def parse_change(change: str) -> tuple[str, Any]:
    """The field and the value of "a.b.c=value"."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {change}: give KEY=VALUE, such as trainer.steps=2000")
    try:
        return key.strip(), parse_yaml(text)
    except ValueError as error:
        raise InputError(f"--set {change[:100]}: cannot read the value: {error}") from None


def lay_over(content: dict[str, Any], key: str, value: Any) -> None:
    """Set the field that "a.b.c" names."""
    *path, last = key.split(".")
    for name in path:
        if content.get(name) is None:
            content[name] = {}
        content = content[name]
        if not isinstance(content, dict):
            raise InputError(f"{key} cannot be set: '{name}' has no fields")
    content[last] = value


def arguments_of(options: Mapping[str, Any]) -> list[str]:
    """The options as they are written, for the ranks that are started."""
    names = ("config", "models_dir", "output", "device", "max_minutes", "gpus", "timeout")
    given = {name.replace("_", "-"): options[name] for name in names}
    written = [f"--{name}={value}" for name, value in given.items() if value is not None]
    written += [f"--models={folder}" for folder in options["search"]]
    return [*written, *(f"--set={change}" for change in options["changes"]), *(["--quiet"] if options["quiet"] else [])]
