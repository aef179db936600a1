"""The arithmetic of long videos: how many frames fit a window, and which frames each window covers.

Frame 0 is the reference picture; frame n >= 1 goes with row n-1 of the audio features. All counts are pixel frames
unless they say latent. A window has 4k+1 frames (the VAE turns the first into one latent frame and every four more into
one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from omniavatar.errors import PlanError

TEMPORAL_FACTOR = 4


@dataclass(frozen=True)
class Span:
    """The frames [start, stop) of a window; the first `given` are fixed; [keep_start, keep_stop) enter the video.

    All bounds count from the beginning of the video.
    """

    start: int
    stop: int
    given: int
    keep_start: int
    keep_stop: int

    @property
    def frames(self) -> int:
        return self.stop - self.start

    @property
    def latent_frames(self) -> int:
        return latent_frames(self.frames)

    @property
    def given_latents(self) -> int:
        """Latent frames that are fixed, 0 without given frames."""
        return latent_frames(self.given)

    @property
    def keep(self) -> slice:
        """The kept frames, counted from the beginning of the window."""
        return slice(self.keep_start - self.start, self.keep_stop - self.start)


def latent_frames(frames: int) -> int:
    """Latent frames of 4k+1 pixel frames: 1 for the first and 1 for every four more; none for 0."""
    return (frames + TEMPORAL_FACTOR - 1) // TEMPORAL_FACTOR


def ceil_4k1(frames: int) -> int:
    """The smallest 4k+1 that is not below `frames`."""
    return TEMPORAL_FACTOR * math.ceil((max(frames, 1) - 1) / TEMPORAL_FACTOR) + 1


def frames_for_budget(max_tokens: int, height: int, width: int, pixels_per_token: int = 1024) -> int:
    """Frames (4k+1) of a window of at most about `max_tokens` tokens; a token covers 4 frames of 16x16 pixels."""
    frames = int(max_tokens * pixels_per_token / height / width)
    return (frames - 1) // TEMPORAL_FACTOR * TEMPORAL_FACTOR + 1


def audio_rows(samples: int, sample_rate: int, fps: int, *, float_ceil: bool = False) -> int:
    """Video frames that `samples` of sound need, rounded up.

    float_ceil: in floating point as the original program does it, which is one too many for some exact multiples.
    """
    if float_ceil:
        return math.ceil(samples / sample_rate * fps)
    return -(-samples * fps // sample_rate)


def plan_spans(
    video_frames: int, window_frames: int, overlap: int, *, first_given: int = 1, full: bool = False
) -> list[Span]:
    """Cover `video_frames` frames by windows of `window_frames`, each sharing `overlap` frames with the one before.

    first_given: given frames of the first window (1 with a reference picture, 0 without).
    full: let the last window keep its full length, as the original program does, instead of stopping with the video.
    """
    check_windows(window_frames, overlap)
    advance = window_frames - overlap
    count = 1 + math.ceil(max(0, video_frames - window_frames) / advance)
    spans = []
    for index in range(count):
        start = index * advance
        frames = window_frames if full else min(window_frames, ceil_4k1(video_frames - start))
        given = first_given if index == 0 else overlap
        keep_start = start if index == 0 else start + overlap
        spans.append(Span(start, start + frames, given, keep_start, min(start + frames, video_frames)))
    return spans


def check_windows(window_frames: int, overlap: int) -> None:
    """Refuse window lengths and overlaps that the VAE or the arithmetic cannot serve."""
    if window_frames <= overlap:
        raise PlanError(
            f"a window of {max(0, window_frames)} frames is not longer than its overlap of {overlap}; "
            "make it longer (fixed-frames.max_tokens or .window_frames), the picture smaller or the overlap shorter"
        )
    for name, value in (("window length", window_frames), ("overlap", overlap)):
        if value < 1 or value % TEMPORAL_FACTOR != 1:
            near = max(1, value - (value - 1) % TEMPORAL_FACTOR)
            raise PlanError(
                f"{name} of {value} frames is not 4n+1; the nearest are {near} and {near + TEMPORAL_FACTOR}"
            )
