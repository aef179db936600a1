"""How the pictures of a video track are to be shown: upright, square pixels, whole frames, the usual colours."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from omniavatar.errors import InputError
from omniavatar.media import ffmpeg

log = logging.getLogger(__name__)

MOST_PIXELS = 2**28
MOST_ELONGATED = 100
"""How many times the longer side may be as long as the shorter one."""
_STREAM = re.compile(r"^  Stream #0:\d+.*?: Video: (?!.*\(attached pic\)).*$", re.MULTILINE)
_SIZE = re.compile(r", (\d+)x(\d+)[ ,\n]")
_SHAPE = re.compile(r"[ \[]SAR (\d+):(\d+)")
_RATE = re.compile(r", ([\d.]+)(k?) (?:fps|tbr)")
_FORMAT = re.compile(r", \w+\(([^()]*)\)")
_COLOURS = re.compile(r"([\w-]+)/([\w-]+)/([\w-]+)")
_QUARTER_TURN = re.compile(r"^ {6}display ?matrix: rotation of -?(?:90|270)\.", re.IGNORECASE | re.MULTILINE)
_HDR = ("smpte2084", "arib-std-b67")
_WIDE = ("bt2020", "smpte431", "smpte432")
_WHITE = 203
"""Luminance of white in HDR, cd/m2 (ITU-R BT.2408)."""


@dataclass(frozen=True)
class Looks:
    """A track's pictures as displayed: their size in pixels, how many a second, and what is unusual about them.

    fps: the nominal rate, to two decimals. primaries, transfer, matrix: of their colours, in ffmpeg's words, "" where
    it says nothing.
    """

    width: int
    height: int
    fps: float
    interlaced: bool = False
    primaries: str = ""
    transfer: str = ""
    matrix: str = ""

    @property
    def whole_frames(self) -> list[str]:
        """The ffmpeg filters that make a picture of two interlaced fields."""
        return ["bwdif=mode=send_frame"] if self.interlaced else []

    def usual_colours(self, name: str) -> list[str]:
        """The ffmpeg filters that map HDR and wide gamut to BT.709.

        An ffmpeg without them leaves the pictures as they are, and a warning names the video.
        """
        to_bt709 = "t=bt709:m=bt709:r=tv,format=yuv444p"
        if self.transfer in _HDR:
            filters = [f"zscale=t=linear:npl={_WHITE},format=gbrpf32le,zscale=p=bt709,tonemap=mobius,zscale={to_bt709}"]
        elif self.primaries in _WIDE and self.transfer and self.matrix:
            filters = [f"zscale=p=bt709:{to_bt709}"]
        else:
            return []
        if not _has_filters("zscale", "tonemap"):
            log.warning("%s has the colours of HDR and will look pale: this ffmpeg has no zscale and tonemap", name)
            return []
        return ["format=yuv444p12le", *filters]


def looks_in(description: str, name: str) -> Looks:
    """What ffmpeg's description says about the first video track.

    name: of the file, for errors. Raises InputError if there is no track, or one of a size that is not believed.
    """
    stream = _STREAM.search(description)
    line = f"{stream[0]}\n" if stream else ""
    size, rate = _SIZE.search(line), _RATE.search(line)
    if stream is None or size is None or rate is None:
        raise InputError(f"{name} has no readable video track; give a video file")
    width, height = _squared(int(size[1]), int(size[2]), line)
    if _QUARTER_TURN.search(description, stream.end()):
        width, height = height, width
    _check_size(width, height, name)
    form = _FORMAT.search(line)
    colours = _COLOURS.search(form[1]) if form else None
    matrix, primaries, transfer = colours[0].replace("unknown", "").split("/") if colours else ("", "", "")
    return Looks(
        width=width,
        height=height,
        fps=float(rate[1]) * (1000 if rate[2] else 1),
        interlaced=form is not None and " first" in form[1],
        primaries=primaries,
        transfer=transfer,
        matrix=matrix,
    )


def _squared(width: int, height: int, line: str) -> tuple[int, int]:
    """The width and height of pictures whose pixels have the shape that a stream's line says, with square ones."""
    shapes = _SHAPE.findall(line)  # where codec and container differ, the latter comes last, and wins
    across, down = map(int, shapes[-1]) if shapes else (1, 1)
    return (max(1, round(width * across / down)) if across and down else width), height


def _check_size(width: int, height: int, name: str) -> None:
    if not 0 < width * height <= MOST_PIXELS:
        raise InputError(
            f"{name} is {width}x{height}; pictures of up to {MOST_PIXELS / 1e6:.0f} million pixels are read"
        )
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise InputError(f"{name} is {width}x{height}; one side may be {MOST_ELONGATED} times as long as the other")


def _has_filters(*names: str) -> bool:
    """Whether this ffmpeg has all of these filters."""
    listed = ffmpeg.run(["-filters"]).decode(errors="replace")
    return all(re.search(rf"^ \S+ +{name} ", listed, re.MULTILINE) for name in names)
