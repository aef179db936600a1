"""`omni env`: the versions and the hardware that a report of a fault should name."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import click

from omniavatar.cli.console import AS_JSON, show, show_json

if TYPE_CHECKING:
    from omniavatar.plugins import Plugins

LIBRARIES = (
    "transformers",
    "safetensors",
    "huggingface_hub",
    "pydantic",
    "numpy",
    "pillow",
    "imageio-ffmpeg",
    "triton",
    "xfuser",
    "flash-attn",
    "sageattention",
)
"""Packages that change what a run does, or how fast, beside torch."""
ABSENT = "not installed"


@click.command()
@AS_JSON
@click.pass_obj
def env(plugins: Plugins, as_json: bool) -> None:
    """Say which versions and which hardware there are; paste it into a report.

    It holds no path, no name of a user and no variable of the environment.
    """
    facts = environment(plugins)
    if as_json:
        show_json(facts)
        return
    from omniavatar.cli.listing import pairs

    show(pairs({name.replace("_", " "): in_words(value) for name, value in facts.items()}))


def in_words(value: Any) -> str:
    """A fact of the report; versions by name in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items()) or "none"
    return "none" if value is None else str(value)


def environment(plugins: Plugins) -> dict[str, Any]:
    """Versions of the program, its plugins and libraries, and the hardware, as JSON values."""
    import imageio_ffmpeg
    import torch

    from omniavatar.bench.machine import machine

    found = machine("cuda" if torch.cuda.is_available() else "cpu")
    first = ("omniavatar", "commit", "python", "torch", "cuda")
    return {
        **{name: found.pop(name) for name in first},
        "plugins": {
            entry.package: entry.version if entry.is_active else f"{entry.version} (left out)"
            for entry in plugins.describe()[1:]
        },
        "libraries": {name: number for name in LIBRARIES if (number := installed(name)) != ABSENT},
        "ffmpeg": imageio_ffmpeg.get_ffmpeg_version(),
        **found,
    }


def installed(package: str) -> str:
    """The version of an installed package, or `ABSENT`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT
