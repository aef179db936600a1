"""Rehearsals of videos, and how their cost is told: what `omni estimate` and `omni run --dry-run` print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from omniavatar.cli import console
from omniavatar.cli.progress import duration
from omniavatar.cli.videos import exit_code
from omniavatar.errors import InputError
from omniavatar.threads import suit_threads

if TYPE_CHECKING:
    from omniavatar.cli.videos import Video, VideoMaker
    from omniavatar.estimate.report import Estimate
    from omniavatar.estimate.timing import Seconds


def estimate_videos(maker: VideoMaker, videos: Sequence[Video]) -> int:
    """Rehearse the videos and print what each would cost; returns the exit code."""
    from omniavatar.estimate.rehearsal import Rehearsal

    if maker.config.gpus > 1 or maker.world.size > 1:
        raise InputError("an estimate is about one GPU; leave --gpus out (for more: omni docs scaling)")
    engine = maker.engine(maker.world, maker.device)
    suit_threads(engine)
    rehearsal = Rehearsal(engine, [maker.watcher])
    made = 0
    for number, video in enumerate(videos, start=1):
        request = maker.tried(video, maker.request, engine, video)
        if request is None:
            continue
        maker.watcher.title = f"estimating video {number}/{len(videos)}, " if len(videos) > 1 else "estimating, "
        with maker.watcher:
            result = maker.tried(video, rehearsal.estimate, request)
        if result is not None:
            made += 1
            show(result, as_json=maker.as_json)
    return exit_code(made, len(videos))


def show(result: Estimate, *, as_json: bool) -> None:
    """Print an estimate, as a table or as a line of JSON."""
    if as_json:
        console.show(json.dumps(result.as_json()))
        return
    console.show(networks_table(result), "", phases_table(result), "", *summary(result))


def networks_table(result: Estimate) -> Table:
    """The networks: how large they are, and where their weights lie while they work."""
    on_gpu = result.peak_device is not None
    headings = ("parameters", "type", "weights", *(["on the GPU"] if on_gpu else []), "blocks", "a block")
    table = console.table_of("network", numbers=headings)
    for network in result.networks:
        table.add_row(
            network.role,
            f"{network.parameters:,}",
            network.dtype,
            gib(network.size),
            *([gib(network.on_device)] if on_gpu else []),
            str(network.blocks or ""),
            "" if network.block_seconds is None else f"{1e3 * network.block_seconds:.2f} ms",
        )
    return table


def phases_table(result: Estimate) -> Table:
    """Time and memory of the phases."""
    on_gpu = result.peak_device is not None
    table = console.table_of("phase", numbers=("time", "range", "share", *(["GPU memory"] if on_gpu else [])))
    for phase in result.phases:
        share = f"{phase.seconds.typical / result.seconds.typical:.0%}" if result.seconds.typical else ""
        memory = [gib(phase.peak_device)] if on_gpu else []
        table.add_row(phase.name, duration(phase.seconds.typical), ends(phase.seconds), share, *memory)
    table.add_section()
    memory = [gib(result.peak_device)] if on_gpu else []
    table.add_row("total", duration(result.seconds.typical), ends(result.seconds), "", *memory)
    return table


def summary(result: Estimate) -> list[str]:
    """The rest in sentences."""
    calls, skipped = result.transformer_calls, result.transformer_calls_skipped
    guidance = ", ".join(result.branches) if len(result.branches) > 1 else "none"
    lines = [
        f"about {duration(result.seconds.typical)}, {ends(result.seconds)}, "
        f"for {duration(result.frames / result.fps)} of video",
        f"{result.frames} frames of {result.width}x{result.height} in {count(result.windows, 'chunk')}, "
        f"{count(result.steps, 'step')} in all",
        f"{count(calls, 'transformer call')} of up to {result.tokens:,} tokens"
        + (f", the blocks skipped in {skipped} of them" if skipped else "")
        + f"; guidance: {guidance}",
    ]
    if result.is_busy:
        lines.insert(
            1,
            "other work keeps this machine busy, so times vary: "
            f"beside it a run takes up to {duration(result.seconds.high)}, without it about "
            f"{duration(result.seconds.low)}",
        )
    if result.peak_host is not None:
        lines.append(f"{gib(result.peak_host)} of host memory")
    if result.fits is not None:
        lines.append(f"{'fits in' if result.fits else 'does not fit in'} the GPU's {gib(result.total_device)}")
    lines.append(f"not included: {', '.join(['loading the models', *result.left_out])}")
    return lines


def ends(seconds: Seconds) -> str:
    """The least and the most of a time: "14.0 to 21.5 s"."""
    low, high = duration(seconds.low), duration(seconds.high)
    return f"{low.removesuffix(' s') if high.endswith(' s') else low} to {high}"


def count(number: int, what: str) -> str:
    """3, "window" -> "3 windows"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def gib(size: int | None) -> str:
    """Bytes in GiB, or in MiB if they are few."""
    if size is None:
        return ""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
