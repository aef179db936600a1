"""Old-film colours for omniavatar: a unit, a preset, a checkpoint table and a command."""

from importlib.resources import files

from omniavatar.sdk import hookimpl

OMNIAVATAR_API = 1


@hookimpl
def omni_units():
    from omniavatar_sepia.unit import Sepia

    return [Sepia]


@hookimpl
def omni_presets():
    return {"old-film": "default+sepia(strength=0.5)"}


@hookimpl
def omni_checkpoints():
    return [files(__package__) / "sepia.toml"]


@hookimpl
def omni_commands(cli):
    import click

    @cli.command("sepia-info")
    def sepia_info():
        """Say what sepia is."""
        click.echo("the colour of old photographs")
