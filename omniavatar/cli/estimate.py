"""`omni estimate`: what a run would cost on this device, before it costs it; `omni run --dry-run` is the same."""

from __future__ import annotations

from typing import Any

import click

from omniavatar.cli.estimates import estimate_videos
from omniavatar.cli.run import RunCommand, ask, run


@click.command(
    cls=RunCommand,
    params=[param for param in run.params if param.name != "dry_run"],
    context_settings=run.context_settings,
)
@click.pass_context
def estimate(ctx: click.Context, **options: Any) -> int:
    """Say what `omni run` with the same options would take on this device: memory, transformer calls, time.

    Every hook of the plan runs, on networks with random weights that hold one block of each kind. Nothing is written.
    """
    return estimate_videos(*ask(ctx, options))
