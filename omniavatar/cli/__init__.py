"""The command line `omni`. Commands live in one file each and are imported when they are used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from omniavatar import __version__
from omniavatar.errors import OmniError

COMMANDS = {
    "run": "omniavatar.cli.run:run",
    "units": "omniavatar.cli.units:units",
    "models": "omniavatar.cli.models:models",
    "plugins": "omniavatar.cli.plugins:plugins",
}
INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group whose own commands are imported on use, and to which plugins add theirs."""

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

    cli = LazyGroup("omni", help="A portrait, a voice and a prompt in, a talking video out.", no_args_is_help=True)
    cli = click.version_option(__version__, prog_name="omni")(cli)
    plugins = discover()
    plugins.add_commands(cli)
    for failure in plugins.failures:
        click.echo(f"omni: plugin '{failure.plugin}' is left out: {failure.reason}", err=True)
    return cli


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 bad input, 3 out of memory, 130 interrupted."""
    sys.exit(run_cli(arguments))


def run_cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors of the user are one line, not a traceback."""
    try:
        result = build_cli().main(args=arguments, prog_name="omni", standalone_mode=False)
    except OmniError as error:
        return _say(error, str(error), error.exit_code)
    except click.ClickException as error:
        return _say(error, error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort) as error:
        return _say(error, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        return 0
    return result if isinstance(result, int) else 0


def _say(error: BaseException, message: str, code: int) -> int:
    cause = error if getattr(error, "__notes__", None) else error.__context__
    for line in (message, *getattr(cause, "__notes__", ())):
        click.echo(f"omni: {line}", err=True)
    return code
