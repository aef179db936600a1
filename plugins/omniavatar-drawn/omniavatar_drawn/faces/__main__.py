"""`python -m omniavatar_drawn.faces FOLDER` writes a few clips and their captions, for looking."""

from __future__ import annotations

from pathlib import Path

import click
from PIL import Image

from omniavatar.errors import OmniError
from omniavatar_drawn.faces.clips import Clip, write_clip


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--clips", default=4, show_default=True, type=click.IntRange(1), help="how many")
@click.option("--first", default=0, show_default=True, type=click.IntRange(0), help="the number of the first")
@click.option("--size", default=256, show_default=True, type=click.IntRange(32, 1024), help="side in pixels")
@click.option("--frames", default=101, show_default=True, type=click.IntRange(2), help="length at 25 frames/s")
@click.option("--audio", type=click.Path(exists=True, dir_okay=False), help="a voice for all; else synthetic speech")
def main(folder: Path, clips: int, first: int, size: int, frames: int, audio: str | None) -> None:
    """Write clips of procedural talking heads into FOLDER, and the first picture of each beside it."""
    try:
        waveform = None
        if audio:
            from omniavatar.media.audio import load_waveform

            waveform = load_waveform(audio)
        for seed in range(first, first + clips):
            clip = Clip.from_seed(seed, frames, waveform)
            write_clip(clip, folder / f"{seed:05}.mp4", size)
            Image.fromarray(clip.pictures(size, [0])[0]).save(folder / f"{seed:05}.png")
            click.echo(f"{seed:05}.mp4  {clip.caption}")
    except OmniError as error:
        hint = "" if audio else "; or give a voice with --audio FILE"
        raise click.ClickException(f"{error}{hint}") from None


if __name__ == "__main__":
    main()
