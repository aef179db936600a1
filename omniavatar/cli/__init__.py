"""The command line `omni`. Commands live in one file each and are imported when they are used."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from omniavatar import __version__
from omniavatar.cli.console import is_unprinted, make_lenient, say, saying_faults, silence, unprintable
from omniavatar.distributed.launch import listen_to_agent
from omniavatar.distributed.leaving import is_ignored
from omniavatar.distributed.world import word_file
from omniavatar.errors import Ended, OmniError, nearest

COMMANDS = {
    "run": "omniavatar.cli.run:run",
    "estimate": "omniavatar.cli.estimate:estimate",
    "train": "omniavatar.cli.train:train",
    "bench": "omniavatar.cli.bench:bench",
    "calibrate": "omniavatar.cli.calibrate:calibrate",
    "units": "omniavatar.cli.units:units",
    "models": "omniavatar.cli.models:models",
    "plugins": "omniavatar.cli.plugins:plugins",
    "docs": "omniavatar.cli.docs:docs",
    "env": "omniavatar.cli.env:env",
}
UNPRINTED = 1
BAD_INPUT = 2
OUT_OF_MEMORY = 3
SIGNALLED = 128
INTERRUPTED = 130
HELP_OPTIONS = ["-h", "--help"]
UNCUT = 1000
"""Letters of a command's first sentence in the help of its group: all."""

NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What a group without arguments raises; before click 8.2 it prints its help itself."""


class Commands(click.Group):
    """A group of commands that suggests the nearest one for a misspelt name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            hint = nearest(name, self.list_commands(ctx))
            raise click.UsageError(f"no command '{name}' in '{ctx.command_path}'{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with all of their first sentences; click would cut them off at the terminal's width."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        lines = [(name, command.get_short_help_str(UNCUT)) for name, command in commands.items() if command is not None]
        if lines:
            with formatter.section("Commands"):
                formatter.write_dl(lines)


class Omni(Commands):
    """The whole command line: its own commands are imported on use, and plugins add theirs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(super().list_commands(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


def build_cli() -> click.Group:
    """The whole command line, plugins' commands included."""
    from omniavatar.plugins import discover

    cli = Omni("omni", help="An image, an audio and a prompt in, a talking video out.", no_args_is_help=True)
    cli = click.version_option(__version__, "-V", "--version", prog_name="omni")(cli)
    plugins = discover()
    cli.context_settings.update(obj=plugins, help_option_names=HELP_OPTIONS)
    for failure in plugins.failures:
        say(f"plugin '{failure.plugin}' is left out: {failure.reason}")
    with saying_faults(plugins):
        plugins.add_commands(cli)
    return cli


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 bad input, 3 out of memory, 130 interrupted.

    A signal that ends the program (128 + its number) leaves the same way as Ctrl-C, with what was finished kept. One
    that whoever started the program ignores, as nohup does SIGHUP, stays ignored.
    """
    if word_file() is not None:  # one of our own ranks, and whoever started it tells how it ended
        listen_to_agent()
        handlers: dict[str, Any] = {"SIGINT": signal.SIG_DFL}
    else:
        handlers = {"SIGTERM": _end, "SIGHUP": _end}
    for name, handler in handlers.items():
        number = getattr(signal, name, None)
        if number is not None and not is_ignored(number):
            signal.signal(number, handler)
    sys.exit(run_cli(sys.argv[1:]))


def _end(number: int, _: Any) -> None:
    raise Ended(SIGNALLED + number)


def run_cli(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code. What the user can mend is one line on stderr, not a traceback."""
    make_lenient(sys.stdout)
    try:
        return _invoke(arguments)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if is_unprinted(error):
            silence(sys.stdout)
            if not isinstance(error, BrokenPipeError):  # else whoever read it wants no more
                say(unprintable(error))
            return UNPRINTED
        message, code = diagnosis(error)
        if not message:
            raise
        say(message, error)
        return code


def _invoke(arguments: Sequence[str]) -> int:
    cli = build_cli()
    try:
        with cli.make_context("omni", spelled_out(arguments)) as ctx:
            result = cli.invoke(ctx)
    except NO_ARGUMENTS as error:
        click.echo(error.format_message())
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    return result if isinstance(result, int) else 0


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """`omni help COMMAND` and `omni version` as the options that they stand for."""
    match list(arguments):
        case ["help", *command]:
            return [*command, "--help"]
        case ["version"]:
            return ["--version"]
        case others:
            return others


def diagnosis(error: BaseException) -> tuple[str, int]:
    """What to tell the user about an error, and the exit code; an empty message if it is a fault of the program."""
    match error:
        case OmniError():
            return str(error), error.exit_code
        case click.ClickException():
            return error.format_message(), BAD_INPUT
        case KeyboardInterrupt() | click.Abort():
            return "interrupted", INTERRUPTED
        case Ended(code=int(code)):
            return f"ended by {signal.Signals(code - SIGNALLED).name}", code
        case _ if is_out_of_memory(error):
            return explained(error), OUT_OF_MEMORY
    return "", 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch on a GPU or torch on the CPU ran out of memory."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from omniavatar.engine import out_of_memory

    return out_of_memory.is_out_of_memory(error)


def explained(error: BaseException) -> str:
    """One line about an error of `is_out_of_memory`: what was being done, what was asked for, what would fit."""
    if "torch" not in sys.modules:
        return "out of memory: the system gave no more"
    from omniavatar.engine.out_of_memory import Shortage
    from omniavatar.plugins import discover

    shortage = Shortage.of(error)
    assert shortage is not None
    return shortage.explain(discover().catalog().units)
