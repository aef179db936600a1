"""The colours of a video for omniavatar: a unit, and a network with a layer of its own in every block."""

from importlib.resources import files

from omniavatar.sdk import hookimpl

OMNIAVATAR_API = 1


@hookimpl
def omni_units():
    from omniavatar_palette.unit import Palette

    return [Palette]


@hookimpl
def omni_checkpoints():
    return [files(__package__) / "palette.toml"]
