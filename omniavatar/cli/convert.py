"""`omni models convert`: model files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from omniavatar.cli.console import show, tell
from omniavatar.cli.fields import UserPath
from omniavatar.cli.here import size
from omniavatar.cli.progress import Progressing, display_for
from omniavatar.engine.progress import Status

if TYPE_CHECKING:
    from omniavatar.checkpoints.converting import Conversion

SHOWN = 5
"""Names that a dry run shows."""


@click.command(short_help="Write a model file in another program's form.")
@click.argument("source", type=UserPath())
@click.argument("target", type=UserPath())
@click.option("--to", "form", required=True, metavar="FORM", help="comfy, diffusers, omniavatar, fp8-scaled or gguf.")
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    default="bf16",
    show_default=True,
    help="What weights become that are packed in SOURCE; others keep theirs.",
)
@click.option("--blocks", default="Q8_0", show_default=True, metavar="TYPE", help="Type of the blocks of a GGUF file.")
@click.option("--force", is_flag=True, help="Replace TARGET.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def convert(source: Path, target: Path, form: str, dtype: str, blocks: str, **flags: bool) -> None:
    """Write SOURCE to TARGET in another form: a transformer, a VAE, a text or image encoder, or a LoRA.

    \b
    comfy        ComfyUI's names; a text encoder's tokenizer goes into its file
    diffusers    the names of diffusers and transformers; a TARGET without .safetensors is a folder with config.json
    omniavatar   the names of Wan's and OmniAvatar's own files
    fp8-scaled   8-bit weights with a scale each, as ComfyUI reads them
    gguf         for ComfyUI-GGUF; wants the package omniavatar-gguf

    SOURCE is a file, the first of some shards, a folder, a pattern, or a model of a file: aio.safetensors::vae. Weights
    stay bit for bit unless they become 8-bit ones, or GGUF's, or come out of such.
    """
    from omniavatar.checkpoints.converting import Conversion
    from omniavatar.cli.tables import registry

    plan = Conversion.plan(source, form, registry(), dense=dtype, quantisation=blocks)
    plan.check(target, force=flags["force"])
    if flags["dry_run"]:
        show(*described(plan, target))
        return
    with display_for(Progressing(), quiet=flags["quiet"]) as display:
        plan.write(
            target,
            force=flags["force"],
            show=lambda done, total: display.show(Status(f"writing {target.name}", done, total)),
        )
    if not flags["quiet"]:
        file = plan.file(target)
        tell(f"{file}  ({plan.row.name}, {len(plan.tensors)} tensors, {size(file.stat().st_size)})")


def described(plan: Conversion, target: Path) -> list[str]:
    """What a conversion would do."""
    lines = [f"{plan.source} is {plan.row.name}; {target} would have {len(plan.tensors)} tensors, {size(plan.nbytes)}"]
    for name, tensor in list(plan.tensors.items())[:SHOWN]:
        lines.append(f"  {tensor.source.name} ({tensor.source.dtype}) -> {name} ({tensor.dtype})")
    if len(plan.tensors) > SHOWN:
        lines.append(f"  and {len(plan.tensors) - SHOWN} more")
    return lines
