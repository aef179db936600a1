"""When the pictures and sounds of a file take place, by the packets that ffmpeg lists, without decoding them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from omniavatar.media import ffmpeg

_TIME_BASE = re.compile(r"^#tb (\d+): (\d+/\d+)$", re.MULTILINE)
_PACKET = re.compile(r"^(\d+), +(-?\d+), +(-?\d+), +(\d+),", re.MULTILINE)
_NO_TIME = -(2**63)


@dataclass(frozen=True)
class Moments:
    """The packets of a stream: when the first begins, when the last begins and ends, in seconds; how many there are."""

    first: Fraction
    last: Fraction
    end: Fraction
    count: int


def list_packets(path: str | os.PathLike[str], options: Iterable[str], output: Iterable[str]) -> str:
    """ffmpeg's list of packets, a line each: stream, decoding time, presentation time, duration, ...

    options, output: ffmpeg's arguments for the input and for what is made of it. Raises FfmpegError.
    """
    arguments = ["-copyts", *options, *ffmpeg.source(path), *output, "-f", "framecrc", "pipe:1"]
    return ffmpeg.run(arguments).decode(errors="replace")


def moments_in(report: str) -> dict[int, Moments]:
    """What a list of packets says about each of its streams."""
    bases = {int(stream): Fraction(base) for stream, base in _TIME_BASE.findall(report)}
    times: dict[int, list[tuple[int, int]]] = {stream: [] for stream in bases}
    for stream, decoded, presented, duration in (map(int, row) for row in _PACKET.findall(report)):
        begin = decoded if presented == _NO_TIME else presented
        times[stream].append((begin, begin + duration))
    return {
        stream: Moments(min(spans)[0] * base, max(spans)[0] * base, max(spans)[1] * base, len(spans))
        for stream, base in bases.items()
        if (spans := times[stream])
    }
