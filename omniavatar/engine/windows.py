"""The arithmetic of long videos: how many frames fit a window, and which frames each window covers.

Frame 0 is the reference picture; frame n >= 1 goes with row n-1 of the audio features. All counts are pixel frames
unless they say latent. A window has 1 + 4k frames, if its VAE turns the first into one latent frame and every four more
into one; `Geometry` knows the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from omniavatar.engine.geometry import Geometry, rounded_down
from omniavatar.errors import PlanError


@dataclass(frozen=True)
class Span:
    """The frames [start, stop) of a window; the first `given` are fixed; [keep_start, keep_stop) enter the video.

    All bounds count from the beginning of the video.
    first_latent: the latent frame of the video that is the window's first, if the window goes on in the latents where
    the one before has ended: its tokens have the positions from there on, and each of its latent frames stands for as
    many frames (4 in Wan). 0: its latents begin anew, the first one with a frame to itself, and so do the positions.
    """

    start: int
    stop: int
    given: int
    keep_start: int
    keep_stop: int
    first_latent: int = 0

    @property
    def frames(self) -> int:
        return self.stop - self.start

    @property
    def keep(self) -> slice:
        """The kept frames, counted from the beginning of the window."""
        return slice(self.keep_start - self.start, self.keep_stop - self.start)


def audio_rows(samples: int, sample_rate: int, fps: int, *, float_ceil: bool = False) -> int:
    """Video frames that `samples` of sound need, rounded up.

    float_ceil: in floating point as the original program does it, which is one too many for some exact multiples.
    """
    if float_ceil:
        return math.ceil(samples / sample_rate * fps)
    return -(-samples * fps // sample_rate)


def plan_spans(
    video_frames: int, window_frames: int, overlap: int, geometry: Geometry, *, first_given: int = 1, full: bool = False
) -> list[Span]:
    """Cover `video_frames` frames by windows of `window_frames`, each sharing `overlap` frames with the one before.

    first_given: given frames of the first window (1 with a reference picture, 0 without).
    full: let the last window keep its full length, as the original program does, instead of stopping with the video.
    """
    check_windows(window_frames, overlap, geometry)
    advance = window_frames - overlap
    count = 1 + math.ceil(max(0, video_frames - window_frames) / advance)
    spans = []
    for index in range(count):
        start = index * advance
        frames = window_frames if full else min(window_frames, geometry.rounded_up(video_frames - start))
        given = first_given if index == 0 else overlap
        keep_start = start if index == 0 else start + overlap
        spans.append(Span(start, start + frames, given, keep_start, min(start + frames, video_frames)))
    return spans


def check_windows(window_frames: int, overlap: int, geometry: Geometry) -> None:
    """Refuse window lengths and overlaps that the networks or the arithmetic cannot serve."""
    if window_frames <= overlap:
        raise PlanError(
            f"a window of {max(0, window_frames)} frames is not longer than its overlap of {overlap}; "
            "make it longer (fixed-frames.max_tokens or .window_frames), the picture smaller or the overlap shorter"
        )
    factor, token = geometry.temporal_factor, geometry.token[0]
    for name, frames, below, step, least in (
        ("window length", window_frames, geometry.rounded_down(window_frames), token, geometry.fewest_frames),
        ("overlap", overlap, rounded_down(overlap, factor), factor, 1),
    ):
        if frames != below or frames < least:
            near = max(least, below)
            raise PlanError(
                f"{name} of {frames} frames is not {step}n+{least}; the nearest are {near} and {near + step}"
            )
